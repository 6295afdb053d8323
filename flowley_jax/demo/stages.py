"""The stages of the demonstration; each reuses what an earlier run of it wrote."""

import dataclasses
import functools
import sys
import time
from pathlib import Path

import numpy as np

from data_prep.impacts.contact_sheet import draw_contact_sheet
from data_prep.impacts.generate import ClipSetConfig, generate
from data_prep.records import RunOptions, prepare_records
from data_prep.settings import RecordSettings
from flowley_jax.audio.mel import log_mel
from flowley_jax.config import ExperimentConfig
from flowley_jax.data.clip_table import read_clip_table
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.held_out import HeldOut, score_held_out
from flowley_jax.evaluation.synchrony import ClipScore
from flowley_jax.media.read import read_audio
from flowley_jax.report import ReportClip, write_report
from flowley_jax.sampling.made_files import MadeFiles, staged
from flowley_jax.sampling.sampler import Sampler
from flowley_jax.training.loop import train
from flowley_jax.training.metrics import read_history

SHOWN_CLIPS = 6
OVERVIEW_CLIPS = 3
# Says which report and picture in the folder this program made, and may therefore replace.
MADE_FILES = "demo.jsonl"
OWNER = "demo"
# Explains the rows of `flowley_jax.evaluation.synchrony.compare` to readers of the report.
MEANINGS = {
    "generated": "Onsets detected in the generated sound, compared with the true times within ±100 ms.",
    "ceiling": "The real sound, encoded and decoded: the best that a model of these latents can do.",
    "floor": "The generated sound compared with the events of another clip: the score of chance.",
    "real": "The real sound itself: the limit of the onset detector.",
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
    _heading("sampling sound for the held-out clips")
    sampler = Sampler.from_run(out / "train")
    scored = score_held_out(sampler, clips, out / "samples")
    for line in scored.failed:
        print(f"skipped: {line}", file=sys.stderr)
    figures = _figures(scored, seconds=time.monotonic() - started)
    _heading("writing the report")
    with staged([report, overview], functools.partial(made_files.claim, OWNER)) as partials:
        _write_report(partials[0], config, scored, sampler, clips, out)
        draw_contact_sheet(clips, partials[1], generated=out / "samples", clips=OVERVIEW_CLIPS)
    print(f"videos with generated sound: {out / 'samples'}")
    print(f"report: {report} (and a picture, {overview})")
    print(_table(scored))
    return {**figures, "samples": str(out / "samples"), "report": str(report)}


def _heading(stage: str) -> None:
    print(f"== {stage}", file=sys.stderr, flush=True)


def _figures(scored: HeldOut, *, seconds: float) -> dict[str, float | int | str | None]:
    figures = {name: row.figures for name, row in scored.rows.items()}
    return {
        "f1": figures["generated"]["f1"],
        "median_abs_error_ms": figures["generated"]["median_abs_error_ms"],
        "precision": figures["generated"]["precision"],
        "recall": figures["generated"]["recall"],
        "ceiling_f1": figures["ceiling"]["f1"],
        "floor_f1": figures["floor"]["f1"],
        "real_f1": figures["real"]["f1"],
        "clips": len(scored.rows["generated"].clips),
        "seconds": round(seconds, 1),
    }


def _table(scored: HeldOut) -> str:
    lines = [f"{'':10} {'precision':>9} {'recall':>9} {'F1':>9} {'|error|':>9}"]
    for name, row in scored.rows.items():
        cells = (f"{row.figures[key]:9.3f}" for key in ("precision", "recall", "f1"))
        lines.append(f"{name:10} {' '.join(cells)} {_milliseconds(row.figures['median_abs_error_ms']):>9}")
    return "\n".join(lines)


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _write_report(
    path: Path, config: ExperimentConfig, scored: HeldOut, sampler: Sampler, clips: Path, out: Path
) -> None:
    figures = {
        f"{name} F1": (f"{scored.rows[name].figures['f1']:.2f}", meaning)
        for name, meaning in MEANINGS.items()
    }
    error = scored.rows["generated"].figures["median_abs_error_ms"]
    figures["generated, median error"] = (
        _milliseconds(error),
        "Median distance between a matched onset and its true time.",
    )
    write_report(
        path,
        title="Flowley-JAX on generated impacts",
        figures=figures,
        history=read_history(out / "train"),
        masks=_masks(config, sampler),
        clips=_report_clips(scored, sampler, clips),
        settings=dataclasses.asdict(config),
    )


def _masks(config: ExperimentConfig, sampler: Sampler) -> np.ndarray | None:
    """Return the soft masks M (N2, Ta, Tv) of the single-stream blocks; None for a model without PSCA."""
    model, dims = config.model, sampler.components.dims
    if model.single_type != "psca" or model.window < 0:
        return None
    mask = model.soft_mask(dims.audio_length, dims.video_length)
    return np.stack([mask.matrix(scale, dims.audio_length, dims.video_length) for scale in model.fade_scales])


def _report_clips(scored: HeldOut, sampler: Sampler, clips: Path) -> list[ReportClip]:
    """Return the first clips of the split; they are not chosen by their scores."""
    components, shown = sampler.components, []
    captions = {clip.id: clip.caption for clip in read_clip_table(clips / "clips.tsv")}
    for clip in scored.rows["generated"].clips[:SHOWN_CLIPS]:
        video, real_video = scored.videos[clip.id], clips / "test" / f"{clip.id}.mp4"
        mels = [
            log_mel(read_audio(path, sample_rate=components.sample_rate), components.codec.mel)
            for path in (real_video, video)
        ]
        shown.append(
            ReportClip(
                title=captions[clip.id],
                remarks=_remarks(clip),
                video=video,
                real_video=real_video,
                events=clip.events,
                detected=clip.detected,
                real_mel=mels[0],
                generated_mel=mels[1],
                frame_rate=components.sample_rate / components.codec.mel.hop,
            )
        )
    return shown


def _remarks(clip: ClipScore) -> str:
    events, onsets = len(clip.events), len(clip.detected)
    return (
        f"F1 {clip.score.f1:.2f} · {events} true event{'s' * (events != 1)}, "
        f"{onsets} onset{'s' * (onsets != 1)} detected in the generated sound"
    )
