"""Read clips, sample their sounds and write them, clip by clip; existing sounds are kept."""

import dataclasses
import logging
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from flowley_jax.common.durations import format_duration
from flowley_jax.common.files import name_errors
from flowley_jax.errors import FlowleyError
from flowley_jax.media.formats import AUDIO_SUFFIXES, MUX_SUFFIXES
from flowley_jax.media.read import read_frames
from flowley_jax.media.write import mux_audio, write_audio
from flowley_jax.sampling.inputs import InputClip
from flowley_jax.sampling.sample_log import Request, SampleLog
from flowley_jax.sampling.sampler import Clip, EncodedClip, Sampler

log = logging.getLogger(__name__)
# Clips whose features are in memory at once.
GROUP = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """Files of sampled clips, and clips without a sound.

    Attributes:
      written: files by clip id, those of earlier runs included.
      failed: one line for every clip that failed.
    """

    written: dict[str, list[Path]]
    failed: list[str]


def check_out(out: Path, *, many: bool) -> None:
    """Check that sounds can be written to `out`, and create its folder.

    Args:
      out: a folder, or, for one clip, a file with the extension of a format that can be written.
      many: whether there are several clips.

    Raises:
      FlowleyError: `out` is neither, or its folder cannot be created or written to.
    """
    known = (*MUX_SUFFIXES, *AUDIO_SUFFIXES)
    if many and out.suffix in known:
        raise FlowleyError(f"--out {out} is a file; for several clips it must be a folder")
    if out.suffix and out.suffix not in known and not out.is_dir():
        raise FlowleyError(
            f"--out {out}: the extension must be one of {', '.join(known)}, or none for a folder"
        )
    if out.suffix in known and out.is_dir():
        raise FlowleyError(f"--out {out}: is a folder, but has the suffix of a file")
    folder = out.parent if out.suffix in known else out
    with name_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise FlowleyError(f"{folder}: cannot be written (Permission denied)")


def write_sounds(
    sampler: Sampler,
    clips: Sequence[InputClip],
    out: Path,
    *,
    suffix: str = ".mp4",
    seed: int = 0,
    num_samples: int = 1,
) -> Results:
    """Sample sounds for clips and write them to the file `out`, or to `out`/<id><suffix> in a folder.

    With several samples, file names end in _0, _1, …. Clips that cannot be used are listed, and the others
    are sampled. In a folder, `samples.jsonl` records how each file was made:

    - A clip whose files were made in the same way from the same video is not sampled again.
    - Sounds that were made in a different way are replaced, and the log says so.
    - Files that this function did not write are never replaced.

    Args:
      sampler: the model.
      clips: videos with their prompts.
      out: a file for one clip, or a folder.
      suffix: .mp4, .mkv or .mov for the video with its sound, without re-encoding the picture; .wav or .flac
        for the sound only.
      seed: seed of the random draws.
      num_samples: number of sounds per clip.

    Raises:
      FlowleyError: an adaptive solver ran out of steps, or `samples.jsonl` cannot be written.
    """
    sample_log = None if _is_file(out) else SampleLog(out)
    jobs = [_job(sampler, clip, _targets(out, clip, suffix, num_samples), seed) for clip in clips]
    todo, results = _partition(jobs, sample_log)
    _log_plan(todo, results, sample_log, out)
    if sample_log:
        sample_log.claim(path for job in todo for path in job.paths)
    started, written, full_scale = time.monotonic(), 0, 0
    for start in range(0, len(todo), GROUP):
        group = {job.clip.id: job for job in todo[start : start + GROUP]}
        encoded = _encode(sampler, group.values(), results.failed)
        for clip, waves in sampler.sounds(encoded, seed=seed, num_samples=num_samples):
            job = group[clip.id]
            try:
                _write(job, waves, sampler.components.sample_rate)
            except FlowleyError as error:
                results.failed.append(str(error))
                continue
            if sample_log:
                sample_log.add(job.request)
            results.written[clip.id] = job.paths
            written += 1
            full_scale += int((np.abs(waves).max(axis=1) >= 1.0).sum())
            left = (time.monotonic() - started) / written * (len(todo) - written)
            log.info("%d/%d %s, %s left", written, len(todo), job.paths[0], format_duration(left))
    if full_scale:
        log.info(
            "%d of %d sounds reach full scale: louder peaks were turned down or clipped",
            full_scale,
            written * num_samples,
        )
    return results


@dataclasses.dataclass(frozen=True)
class _Job:
    """A clip, the files to write, and all that their content depends on."""

    clip: InputClip
    paths: list[Path]
    request: Request


def _job(sampler: Sampler, clip: InputClip, paths: list[Path], seed: int) -> _Job:
    stat = clip.path.stat() if clip.path.exists() else None
    video = stat and {"name": clip.path.name, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    request = {
        "id": clip.id,
        "files": [path.name for path in paths],
        "prompt": clip.prompt,
        "seed": seed,
        "video": video,
        "settings": dataclasses.asdict(sampler.settings),
        "weights": dict(sampler.origin),
    }
    return _Job(clip, paths, request)


def _partition(jobs: Sequence[_Job], sample_log: SampleLog | None) -> tuple[list[_Job], Results]:
    """Return the clips to sample, and the results of the others."""
    todo, results = [], Results(written={}, failed=[])
    for job in jobs:
        video = job.clip.path
        if sample_log and sample_log.is_done(job.request, job.paths):
            results.written[job.clip.id] = job.paths
        elif any(path.exists() and video.exists() and path.samefile(video) for path in job.paths):
            results.failed.append(f"{video}: the output would replace the input video")
        elif sample_log and (foreign := sample_log.foreign(job.paths)):
            results.failed.append(
                f"{foreign[0]}: already exists and was not written by this program; remove it or change --out"
            )
        else:
            todo.append(job)
    return todo, results


def _log_plan(todo: Sequence[_Job], results: Results, sample_log: SampleLog | None, out: Path) -> None:
    """Log what is reused, what is replaced, and which clips have no prompt."""
    if results.written:
        count = len(results.written) + len(results.failed) + len(todo)
        log.info("%d of %d clips already have their sound in %s", len(results.written), count, out)
    replaced = [job for job in todo if sample_log and any(path.exists() for path in job.paths)]
    if sample_log and replaced:
        # A dict keeps the order of first appearance.
        changes = dict.fromkeys(change for job in replaced for change in sample_log.changes(job.request))
        made_with = f", made with {', '.join(changes)}" if changes else ""
        clips = "1 clip" if len(replaced) == 1 else f"{len(replaced)} clips"
        log.info("replacing earlier sounds of %s in %s%s", clips, out, made_with)
    unprompted = sum(not job.clip.prompt.strip() for job in todo)
    if unprompted:
        log.info("no prompt for %d of %d clips: their sound follows the picture only", unprompted, len(todo))


def _encode(sampler: Sampler, jobs: Iterable[_Job], failed: list[str]) -> list[EncodedClip]:
    """Return the features of the clips that can be used; append a line to `failed` for each other clip."""
    encoded = []
    components = sampler.components
    for job in jobs:
        try:
            frames = read_frames(
                job.clip.path, fps=components.video_fps, size=components.video_encoder.frame_size
            )
            encoded.append(sampler.encode(Clip(id=job.clip.id, frames=frames, prompt=job.clip.prompt)))
        except FlowleyError as error:
            failed.append(str(error))
    return encoded


def _is_file(out: Path) -> bool:
    return out.suffix in (*AUDIO_SUFFIXES, *MUX_SUFFIXES)


def _targets(out: Path, clip: InputClip, suffix: str, num_samples: int) -> list[Path]:
    single = out if _is_file(out) else out / f"{clip.id}{suffix}"
    if num_samples == 1:
        return [single]
    return [single.with_name(f"{single.stem}_{n}{single.suffix}") for n in range(num_samples)]


def _write(job: _Job, waves: np.ndarray, sample_rate: int) -> None:
    """Write the waves (num_samples, N) of one clip."""
    for path, wave in zip(job.paths, waves, strict=True):
        with name_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in AUDIO_SUFFIXES:
            write_audio(path, wave, sample_rate)
        else:
            mux_audio(job.clip.path, wave, sample_rate, path)
