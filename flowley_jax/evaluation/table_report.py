"""Evaluate on a clip table from the command line: sample, score, and write the report and the figures."""

import dataclasses
import functools
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowley_jax.audio.mel import MEL_16K, log_mel
from flowley_jax.common.files import write_text
from flowley_jax.data.clip_table import TableClip, read_clip_table
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.embedded_tagger import Readers, tagger_clips
from flowley_jax.evaluation.feature_scores import FeatureScores
from flowley_jax.evaluation.feature_sets import FeatureSet
from flowley_jax.evaluation.labels import all_classes, classes_of
from flowley_jax.evaluation.rows import CODEC, MEANINGS, OTHER_CLIP, REAL
from flowley_jax.evaluation.run import (
    FEATURES_FOLDER,
    REFERENCE,
    Evaluation,
    EvaluationSettings,
    evaluate_clips,
)
from flowley_jax.evaluation.sounds import one_form, sound_files
from flowley_jax.evaluation.synchrony import read_events
from flowley_jax.evaluation.tables import (
    as_json,
    av_benchmark_metrics,
    difference_lines,
    difference_rows,
    interval_groups,
    table_notes,
    table_rows,
    table_text,
)
from flowley_jax.media.read import read_audio
from flowley_jax.report import (
    ReportClip,
    bars_section,
    clips_section,
    intervals_section,
    settings_section,
    table_section,
    write_page,
)
from flowley_jax.runs.workdir import load_components, read_config
from flowley_jax.sampling.inputs import find_inputs
from flowley_jax.sampling.made_files import MadeFiles, staged
from flowley_jax.sampling.outputs import write_sounds
from flowley_jax.sampling.sampler import Sampler

log = logging.getLogger(__name__)
REPORT_FILE, SCORES_FILE, AV_BENCHMARK_FILE = "report.html", "scores.json", "output_metrics.json"
SAMPLES_FOLDER = "samples"
SAMPLED = "generated"
# Says which reports and figures in the folder this program made, and may therefore replace.
_MADE_FILES, _OWNER = "evaluate.jsonl", "evaluate"
_SECONDS = 8.0
# Names of rows and folders that are no systems.
_LONGEST_NAME = 100
_RESERVED = (REAL, CODEC, OTHER_CLIP, REFERENCE)
# Length, captions and reference of published benchmarks; av-benchmark takes 8 s of both.
_PROTOCOLS: Mapping[str, dict[str, Any]] = {
    "vggsound": {"seconds": 8.0, "captions": "label", "real_sound": True},
    "moviegen": {"seconds": 8.0, "captions": "caption", "real_sound": False},
}
# The first of these that has values orders the clips of the report; larger is better.
_RANKING = (
    *("onset-F1", "IB-Score", "LAION-CLAP-Score"),
    *("class-accuracy", "Greatest-Hits-AP", "AV-Align"),
)
_SHOWN_CLIPS, _SHOWN_LABELS, _SHOWN_NAMES = 3, 24, 5
_RESAMPLER = "windowed sinc of torchaudio (width 6, roll-off 0.99)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A request to evaluate, as the command line states it.

    Attributes:
      table: the clip table.
      split: rows of the table to score.
      out: folder for everything that is written.
      systems: folders of sounds, each possibly as NAME=FOLDER; none to sample with `workdir`.
      workdir: folder of a run.
      networks: folder of bundles.
      protocol: name of a published benchmark.
      seconds: length that the networks take; None for the protocol's or the run's.
      dtype: compute type of the networks.
      seed: seed of sampled sounds.
      events: file of true event times.
      tolerance: largest distance of an onset from its event, in seconds.
      av_align: whether to compute AV-Align.
      bandwidth: the side that decides the bandwidth of KAD.
      resamples: resampled sets of clips for the intervals of distances and Inception scores.
    """

    table: Path
    split: str
    out: Path
    systems: tuple[str, ...] = ()
    workdir: Path | None = None
    networks: Path | None = None
    protocol: str | None = None
    seconds: float | None = None
    dtype: str = "float32"
    seed: int = 0
    events: Path | None = None
    tolerance: float = 0.1
    av_align: bool = True
    bandwidth: str = "reference"
    resamples: int = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableResult:
    """The text and the files of an evaluation.

    Attributes:
      table: the table as text.
      remarks: lines on clips and metrics that are left out.
      report: the report.
      scores: the file of all figures.
    """

    table: str
    remarks: list[str]
    report: Path
    scores: Path


def evaluate_table(request: Request, readers: Readers) -> TableResult:
    """Evaluate systems on a clip table, and write the report and the figures.

    Everything that takes long is kept in `request.out`, so that the same request resumes.

    Args:
      request: what to evaluate.
      readers: source of the processes that read files.

    Raises:
      FlowleyError: the table, a folder or a file cannot be used; the message names it.
    """
    if request.out.exists() and not request.out.is_dir():
        raise FlowleyError(f"--out {request.out}: is a file; a folder is needed")
    made_files = MadeFiles(request.out / _MADE_FILES)
    report, scores = request.out / REPORT_FILE, request.out / SCORES_FILE
    clips = read_clip_table(request.table)
    chosen = [clip for clip in clips if clip.split == request.split]
    if not chosen:
        splits = ", ".join(dict.fromkeys(clip.split for clip in clips))
        raise FlowleyError(f"{request.table}: has no row of the split {request.split!r}, only of {splits}")
    if request.workdir:
        # A folder without a run is named as such.
        read_config(request.workdir)
    components = load_components(request.workdir) if request.workdir else None
    settings = _settings(request, components.seconds if components else None)
    systems = _systems(request.systems) if request.systems else {SAMPLED: request.out / SAMPLES_FOLDER}
    names = [AV_BENCHMARK_FILE] if len(systems) == 1 else [f"output_metrics_{name}.json" for name in systems]
    metrics = [request.out / name for name in names]
    for path in (report, scores, *metrics):
        if fault := made_files.fault(path, _OWNER):
            raise FlowleyError(fault)
    failed = [] if request.systems else _sample(request)
    evaluation = evaluate_clips(
        chosen,
        systems,
        request.out,
        settings,
        readers=readers,
        training=[] if request.protocol else tagger_clips(clips),
        events=read_events(request.events) if request.events else None,
        components=components,
    )
    facts = _facts(request, settings, evaluation, chosen)
    remarks = [*failed, *_remarks(evaluation)]
    with staged([report, scores, *metrics], functools.partial(made_files.claim, _OWNER)) as partials:
        _write_report(partials[0], request, evaluation, chosen, systems, facts, remarks)
        _write_scores(partials[1], evaluation, facts)
        for name, path in zip(systems, partials[2:], strict=True):
            theirs = av_benchmark_metrics(evaluation.rows[name])
            write_text(path, json.dumps(theirs, indent=2) + "\n")
    _remove_other_metrics(request.out, metrics, made_files)
    lines = [table_text(evaluation.rows), *difference_lines(evaluation.differences, next(iter(systems)))]
    return TableResult(table="\n".join(lines), remarks=remarks, report=report, scores=scores)


def _remove_other_metrics(out: Path, metrics: Sequence[Path], made_files: MadeFiles) -> None:
    """Remove av-benchmark's figures of an earlier evaluation of other systems."""
    for path in set(out.glob("output_metrics*.json")) - set(metrics):
        if made_files.holds(path):
            path.unlink()


def _write_scores(path: Path, evaluation: Evaluation, facts: Mapping[str, Any]) -> None:
    content = {
        "facts": facts,
        "rows": {name: as_json(row) for name, row in evaluation.rows.items()},
        "differences": {
            name: {metric: dataclasses.asdict(interval) for metric, interval in intervals.items()}
            for name, intervals in evaluation.differences.items()
        },
        **{name: getattr(evaluation, name) for name in ("missing", "left_out", "failed")},
    }
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _settings(request: Request, run_seconds: float | None) -> EvaluationSettings:
    protocol = _PROTOCOLS[request.protocol] if request.protocol else {}
    if request.protocol and request.seconds not in (None, protocol["seconds"]):
        needed = f"{protocol['seconds']:g} s, not --seconds {request.seconds:g}"
        raise FlowleyError(f"--protocol {request.protocol} takes {needed}")
    seconds = request.seconds or protocol.get("seconds") or run_seconds or _SECONDS
    return EvaluationSettings(
        networks=request.networks,
        dtype=request.dtype,
        bandwidth=request.bandwidth,
        resamples=request.resamples,
        tolerance=request.tolerance,
        av_align=request.av_align,
        **{**protocol, "seconds": seconds},
    )


def _systems(texts: Sequence[str]) -> dict[str, Path]:
    """Return the folders of systems by name."""
    systems: dict[str, Path] = {}
    for text in texts:
        name, separator, folder = text.partition("=")
        if not separator or Path(text).is_dir():
            name, folder = Path(text).resolve().name, text
        if (
            not name
            or len(name.encode()) > _LONGEST_NAME
            or name != Path(name).name
            or name.startswith(".")
            or not folder
        ):
            raise FlowleyError(f"--sounds {text}: must be a folder, or NAME=FOLDER with a name for a folder")
        if name in _RESERVED:
            raise FlowleyError(f"--sounds {text}: {name!r} is the name of another row; name it, NAME=FOLDER")
        if name in systems:
            raise FlowleyError(f"--sounds {text}: another system is also called {name}; name it, NAME=FOLDER")
        systems[name] = Path(folder)
    return systems


def _sample(request: Request) -> list[str]:
    """Sample sounds with a run; return a line for every clip that failed."""
    assert request.workdir is not None
    sampler = Sampler.from_run(request.workdir)
    inputs = find_inputs(request.table, split=request.split)
    results = write_sounds(sampler, inputs, request.out / SAMPLES_FOLDER, seed=request.seed)
    if not results.written:
        raise FlowleyError(f"{request.table}: no clip could be sampled: {results.failed[0]}")
    return results.failed


def _facts(
    request: Request, settings: EvaluationSettings, evaluation: Evaluation, clips: Sequence[TableClip]
) -> dict[str, Any]:
    """Return what a reader must know to compare the scores with others."""
    return {
        "table": request.table.name,
        "split": request.split,
        "protocol": request.protocol or "none",
        "clips": len(clips),
        "seconds": settings.seconds,
        "captions": f"column {'label' if settings.captions == 'label' else 'text_description'}",
        "pictures": _pictures(request.out, {one_form(clip.id) for clip in clips}),
        "resampler": _RESAMPLER,
        "networks": ", ".join(evaluation.networks) or "none",
        "dtype": settings.dtype,
        "kad_bandwidth": settings.bandwidth,
        "resamples": settings.resamples,
        "events": request.events.name if request.events else "none",
        "tolerance": settings.tolerance,
        "missing": {name: len(ids) for name, ids in evaluation.missing.items()},
        "failed": {
            name: len({line.partition(": ")[0] for line in lines})
            for name, lines in evaluation.failed.items()
        },
    }


def _pictures(out: Path, clips: Collection[str]) -> str:
    """Return the sizes and rates of the pictures, on which AV-Align depends; empty without it."""
    reference = FeatureSet(out / FEATURES_FOLDER / REFERENCE)
    if "video_format" not in reference.kinds():
        return ""
    formats = [x for clip, x in reference.read("video_format").items() if clip in clips]
    names = sorted({f"{width:g}×{height:g} at {rate:.4g} fps" for rate, width, height in formats})
    return ", ".join(names[:_SHOWN_NAMES]) + (", …" if len(names) > _SHOWN_NAMES else "")


def _remarks(evaluation: Evaluation) -> list[str]:
    what = {
        "missing": "clips of the table without a sound",
        "left_out": "sounds that are not in the table",
        "failed": "no features",
    }
    lines = []
    for kind, text in what.items():
        for name, items in getattr(evaluation, kind).items():
            # Several extractors may have failed on a clip.
            by_clip = {item.partition(": ")[0]: item for item in reversed(items)}
            if by_clip:
                lines.append(f"{name}: {text}: {_listed(list(by_clip.values())[::-1])}")
    for row, scores in evaluation.rows.items():
        scored = scores.clips.get("onset-F1", [0])[0]
        most = max((sizes[0] for sizes in scores.clips.values()), default=0)
        if 0 < scored < most and row not in MEANINGS:
            lines.append(f"{row}: F1 is of the {scored} clips with events, of {most}")
        for kind, ids in scores.without_reference.items():
            if ids and row not in MEANINGS:
                lines.append(f"{row}: {kind} without a reference: {_listed(ids)}")
        for metric, ids in scores.without_value.items():
            if ids and row not in MEANINGS:
                lines.append(f"{row}: clips without {metric}: {_listed(ids)}")
        lines += [f"{row}: {metric} has no value: {reason}" for metric, reason in scores.undefined.items()]
        for file, clips in scores.not_finite.items():
            lines.append(f"{row}: features that are not finite, {Path(file).name}: {_listed(clips)}")
    return lines


def _listed(items: Sequence[str]) -> str:
    more = "; …" if len(items) > _SHOWN_NAMES else ""
    return f"{len(items)} ({'; '.join(items[:_SHOWN_NAMES])}{more})"


def _write_report(
    path: Path,
    request: Request,
    evaluation: Evaluation,
    clips: Sequence[TableClip],
    systems: Mapping[str, Path],
    facts: Mapping[str, Any],
    remarks: Sequence[str],
) -> None:
    rows = table_rows(evaluation.rows)
    notes = [*table_notes(evaluation.rows), *remarks]
    sections = [table_section("Scores", list(evaluation.rows), rows, notes=notes)]
    first = next(iter(systems))
    if len(systems) > 1:
        rows = difference_rows(evaluation.differences)
        note = "95 % intervals of paired resampling: both systems on the clips that both have."
        others = list(evaluation.differences)
        sections.append(table_section(f"Differences from {first}", others, rows, notes=[note]))
        groups = interval_groups({name: evaluation.rows[name] for name in systems})
        sections.append(intervals_section("Scores with 95 % intervals", "Each on its own scale.", groups))
    metric = next((name for name in _RANKING if name in evaluation.rows[first].per_clip), None)
    if metric is not None:
        sections.append(_label_bars(metric, {name: evaluation.rows[name] for name in systems}, clips))
        ranked = sorted(evaluation.rows[first].per_clip[metric].items(), key=lambda item: item[1])
        worst, best = ranked[:_SHOWN_CLIPS], ranked[_SHOWN_CLIPS:][-_SHOWN_CLIPS:][::-1]
        show = functools.partial(
            _report_clips, metric=metric, clips=clips, folder=systems[first], events=request.events
        )
        sections.append(clips_section(f"Best clips of {first}", show(best)))
        sections.append(clips_section(f"Worst clips of {first}", show(worst)))
    sections.append(settings_section(facts))
    write_page(path, f"Evaluation on {request.table.name}", sections)


def _label_bars(metric: str, rows: Mapping[str, FeatureScores], clips: Sequence[TableClip]) -> str:
    """Return bars of a metric by class, of the classes with the most clips."""
    clips_of = {
        label: [one_form(clip.id) for clip in clips if label in classes_of(clip.label)]
        for label in all_classes(clip.label for clip in clips)
    }
    largest = sorted(clips_of, key=lambda label: (-len(clips_of[label]), label))[:_SHOWN_LABELS]
    groups: dict[str, dict[str, float]] = {}
    for label in largest:
        for name, row in rows.items():
            values = [row.per_clip[metric][clip] for clip in clips_of[label] if clip in row.per_clip[metric]]
            if values:
                groups.setdefault(f"{label} ({len(clips_of[label])})", {})[name] = float(np.mean(values))
    note = f"Mean {metric} of the clips of each class; the number of clips is in brackets."
    return bars_section("By class", note, groups)


def _report_clips(
    ranked: Sequence[tuple[str, float]],
    *,
    metric: str,
    clips: Sequence[TableClip],
    folder: Path,
    events: Path | None,
) -> list[ReportClip]:
    by_id = {one_form(clip.id): clip for clip in clips}
    files, times = sound_files(folder).paths, read_events(events) if events else {}
    shown = []
    for name, value in ranked:
        clip = by_id[name]
        try:
            mels = [
                log_mel(read_audio(file, sample_rate=MEL_16K.sample_rate), MEL_16K)
                for file in (clip.video_path, files[name])
            ]
        except FlowleyError as error:
            log.warning("%s is not shown: %s", name, error)
            continue
        shown.append(
            ReportClip(
                title=clip.caption or clip.label or name,
                remarks=f"{name} · {metric} {value:.2f}",
                video=files[name],
                real_video=clip.video_path,
                events=times.get(name, np.zeros(0)),
                detected=np.zeros(0),
                real_mel=mels[0],
                generated_mel=mels[1],
                frame_rate=MEL_16K.sample_rate / MEL_16K.hop,
            )
        )
    return shown
