"""The stages of the demonstration; each reuses what an earlier run of it wrote."""

import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_prep.impacts.contact_sheet import draw_contact_sheet
from data_prep.impacts.generate import ClipSetConfig, generate
from data_prep.records import RunOptions, prepare_records
from data_prep.settings import RecordSettings
from flowley_jax.audio.mel import log_mel
from flowley_jax.config import ExperimentConfig
from flowley_jax.data.clip_table import read_clip_table
from flowley_jax.demo.scoring import GENERATED, score_impacts
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.during_training import train
from flowley_jax.evaluation.feature_scores import FeatureScores
from flowley_jax.evaluation.feature_sets import FeatureSet
from flowley_jax.evaluation.rows import CODEC, OTHER_CLIP, REAL
from flowley_jax.evaluation.run import FEATURES_FOLDER, Evaluation
from flowley_jax.evaluation.synchrony import read_events
from flowley_jax.evaluation.tables import table_notes, table_rows, table_text
from flowley_jax.media.read import read_audio
from flowley_jax.report import ReportClip, table_section, write_report
from flowley_jax.sampling.made_files import MadeFiles, staged
from flowley_jax.sampling.sampler import Sampler
from flowley_jax.training.metrics import read_history

SHOWN_CLIPS = 6
OVERVIEW_CLIPS = 3
# Says which report and picture in the folder this program made, and may therefore replace.
MADE_FILES = "demo.jsonl"
OWNER = "demo"
# Figures of the generated sounds, and those of every row, by their names in the last line.
_FIGURES = {"median_abs_error_ms": "onset-error-ms", "precision": "onset-precision", "recall": "onset-recall"}
_ROW_FIGURES = {
    "f1": "onset-F1",
    "fd": "FD-TAGGER",
    "kl": "KL-TAGGER-softmax",
    "material_accuracy": "material-accuracy",
}
# Metric, digits, unit and meaning of each headline figure of the report.
_HEADLINES = {
    "F1 of onsets": (
        *("onset-F1", 2, ""),
        "Onsets detected in the generated sound, compared with the true times within ±100 ms.",
    ),
    "median error": ("onset-error-ms", 0, " ms", "Median distance of a matched onset from its true time."),
    "right materials": (
        *("material-accuracy", 2, ""),
        "Share of the clips in whose sound the tagger finds the materials of the picture.",
    ),
    "Fréchet distance": (
        *("FD-TAGGER", 0, ""),
        "Distance of the generated sounds' embeddings from the real ones' (tagger).",
    ),
}


def prepare_clips(clip_set: ClipSetConfig, out: Path, *, workers: int) -> tuple[Path, Path]:
    """Generate the clips and prepare their records.

    Args:
      clip_set: which clips to generate.
      out: folder of the demonstration.
      workers: number of processes.

    Returns:
      The folder of the clips and the folder of the records.

    Raises:
      FlowleyError: a clip cannot be written or read.
    """
    clips, records = out / "clips", out / "records"
    _heading("generating the clips")
    generate(clip_set, clips, workers=workers)
    _heading("preparing the records")
    settings = RecordSettings(seconds=clip_set.seconds)
    prepare_records(clips / "clips.tsv", records, settings, RunOptions(decoders=workers))
    return clips, records


def run_demonstration(
    config: ExperimentConfig, clip_set: ClipSetConfig, out: Path, *, workers: int
) -> dict[str, float | int | str | None]:
    """Run every stage that is not done yet and return the figures.

    Args:
      config: configuration of the training; its records are replaced by those of the generated clips.
      clip_set: which clips to generate.
      out: folder of the demonstration.
      workers: number of processes that generate and read clips.

    Raises:
      FlowleyError: the folder holds a report of someone else, a stage failed, or the training was
        interrupted; run it again to resume.
    """
    started = time.monotonic()
    report, overview = out / "report.html", out / "overview.png"
    made_files = MadeFiles(out / MADE_FILES)
    for path in (report, overview):
        if fault := made_files.fault(path, OWNER):
            raise FlowleyError(fault)
    clips, records = prepare_clips(clip_set, out, workers=workers)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, records=str(records)))
    _heading("training")
    if train(config, out / "train").interrupted:
        raise FlowleyError("training was interrupted; run the same command again to resume")
    _heading("sampling sound for the held-out clips, and scoring it")
    sampler = Sampler.from_run(out / "train")
    samples = out / "samples"
    evaluation = score_impacts(sampler, clips, samples, out / "evaluation", workers=workers)
    for line in itertools.chain.from_iterable(evaluation.failed.values()):
        print(f"no features: {line}", file=sys.stderr)
    figures = _figures(evaluation.rows, seconds=time.monotonic() - started)
    _heading("writing the report")
    with staged([report, overview], functools.partial(made_files.claim, OWNER)) as partials:
        _write_report(partials[0], config, evaluation, sampler, clips, out)
        draw_contact_sheet(clips, partials[1], generated=samples, clips=OVERVIEW_CLIPS)
    print(f"videos with generated sound: {samples}")
    print(f"report: {report} (and a picture, {overview})")
    print(table_text(evaluation.rows))
    return {**figures, "samples": str(samples), "report": str(report)}


def _heading(stage: str) -> None:
    print(f"== {stage}", file=sys.stderr, flush=True)


def _figures(rows: Mapping[str, FeatureScores], *, seconds: float) -> dict[str, float | int | str | None]:
    generated = rows[GENERATED]
    of_rows = {"": GENERATED, "ceiling_": CODEC, "floor_": OTHER_CLIP, "real_": REAL}
    return {
        **{name: generated.metrics.get(metric) for name, metric in _FIGURES.items()},
        **{
            f"{prefix}{name}": rows[row].metrics.get(metric)
            for prefix, row in of_rows.items()
            for name, metric in _ROW_FIGURES.items()
        },
        "clips": generated.clips["onset-F1"][0],
        "seconds": round(seconds, 1),
    }


def _write_report(
    path: Path, config: ExperimentConfig, evaluation: Evaluation, sampler: Sampler, clips: Path, out: Path
) -> None:
    generated = evaluation.rows[GENERATED].metrics
    figures = {
        name: (f"{generated[metric]:.{digits}f}{unit}", meaning)
        for name, (metric, digits, unit, meaning) in _HEADLINES.items()
        if metric in generated
    }
    rows = table_rows(evaluation.rows)
    write_report(
        path,
        title="Flowley-JAX on generated impacts",
        figures=figures,
        history=read_history(out / "train"),
        masks=_masks(config, sampler),
        clips=_report_clips(evaluation, sampler, clips, out),
        settings=dataclasses.asdict(config),
        tables=[table_section("Scores", list(evaluation.rows), rows, notes=table_notes(evaluation.rows))],
    )


def _masks(config: ExperimentConfig, sampler: Sampler) -> np.ndarray | None:
    """Return the soft masks M (N2, Ta, Tv) of the single-stream blocks; None for a model without PSCA."""
    model, dims = config.model, sampler.components.dims
    if model.single_type != "psca" or model.window < 0:
        return None
    mask = model.soft_mask(dims.audio_length, dims.video_length)
    return np.stack([mask.matrix(scale, dims.audio_length, dims.video_length) for scale in model.fade_scales])


def _report_clips(evaluation: Evaluation, sampler: Sampler, clips: Path, out: Path) -> list[ReportClip]:
    """Return the first clips of the split; they are not chosen by their scores."""
    components, shown = sampler.components, []
    captions = {clip.id: clip.caption for clip in read_clip_table(clips / "clips.tsv")}
    events = read_events(clips / "events.jsonl")
    onsets = FeatureSet(out / "evaluation" / FEATURES_FOLDER / GENERATED).read("onsets")
    for name, f1 in itertools.islice(evaluation.rows[GENERATED].per_clip["onset-F1"].items(), SHOWN_CLIPS):
        video, real_video = out / "samples" / f"{name}.mp4", clips / "test" / f"{name}.mp4"
        mels = [
            log_mel(read_audio(path, sample_rate=components.sample_rate), components.codec.mel)
            for path in (real_video, video)
        ]
        counts = _count(len(events[name]), "true event"), _count(len(onsets[name]), "onset")
        shown.append(
            ReportClip(
                title=captions[name],
                remarks=f"F1 {f1:.2f} · {counts[0]}, {counts[1]} detected in the generated sound",
                video=video,
                real_video=real_video,
                events=events[name],
                detected=onsets[name],
                real_mel=mels[0],
                generated_mel=mels[1],
                frame_rate=components.sample_rate / components.codec.mel.hop,
            )
        )
    return shown


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
