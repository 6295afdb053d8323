"""Read clips, sample their sounds and write them, clip by clip; existing sounds are kept."""

import contextlib
import dataclasses
import functools
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from flowley_jax.common.durations import format_duration
from flowley_jax.common.files import check_new_file, name_errors, remove_partials
from flowley_jax.errors import FlowleyError
from flowley_jax.media.formats import AUDIO_SUFFIXES, MUX_SUFFIXES, VIDEO_SUFFIXES, has_suffix
from flowley_jax.media.inputs import MediaError
from flowley_jax.media.mix import ONLY_NEW, Keep, Mixing, mixed
from flowley_jax.media.picture import check_picture
from flowley_jax.media.read import frame_blocks, probe, read_audio
from flowley_jax.media.write import mux_audio, write_audio
from flowley_jax.sampling.batches import Gathered, Track
from flowley_jax.sampling.clips import Clip, EncodedClip
from flowley_jax.sampling.failures import CLIP_ERRORS, check_file, failure_line
from flowley_jax.sampling.inputs import InputClip
from flowley_jax.sampling.made_files import staged
from flowley_jax.sampling.plan import (
    WRITTEN_SUFFIXES,
    Job,
    Plan,
    input_ids,
    is_file,
    log_plan,
    make_jobs,
    make_plan,
    replaces_input,
    target_paths,
    task_of,
)
from flowley_jax.sampling.ranking import best_first
from flowley_jax.sampling.sample_log import SampleLog
from flowley_jax.sampling.sampler import Sampler
from flowley_jax.sampling.shares import Shares
from flowley_jax.sampling.sound_levels import SoundLevels
from flowley_jax.sampling.team import Team

log = logging.getLogger(__name__)
# A temporary file next to the file `--out` is no longer written to if it has not changed for a day.
_ABANDONED_SECONDS = 86_400.0
# Suffixes that no folder has by intention.
_OTHER_MEDIA = (*VIDEO_SUFFIXES, ".mp3", ".m4a", ".aac", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".gif")
# Videos whose picture ends this long before the file are mentioned: they may be incomplete downloads.
_NOTED_SECONDS = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """Files of sampled clips, and clips without a sound.

    Attributes:
      written: files by clip id, those of earlier runs included.
      failed: one line for every clip that failed.
    """

    written: dict[str, list[Path]]
    failed: list[str]


def check_out(
    out: Path, clips: Sequence[InputClip], *, num_samples: int = 1, overwrite: bool = False
) -> None:
    """Check that sounds can be written to `out`, and create its folder.

    Args:
      out: a folder, or, for one clip, a file with the extension of a format that can be written.
      clips: the clips.
      num_samples: number of sounds per clip.
      overwrite: whether the file may exist.

    Raises:
      FlowleyError: `out` is neither, is an input, a video for a sound from text or, without `overwrite`, an
        existing file; or its folder cannot be created or written to.
    """
    many = len(clips) > 1
    if many and is_file(out):
        raise FlowleyError(f"--out {out} names a file; for several clips it must name a folder")
    if not is_file(out) and not out.is_dir() and out.suffix.lower() in _OTHER_MEDIA:
        raise FlowleyError(f"--out {out}: the extension must be one of {', '.join(WRITTEN_SUFFIXES)}")
    if is_file(out):
        paths = target_paths(out, clips[0].id, "", num_samples)
        if clips[0].path is None and has_suffix(out, MUX_SUFFIXES):
            raise FlowleyError(
                f"--out {out}: a sound from text has no picture; the extension must be .wav or .flac"
            )
        if replaces_input(paths, input_ids(clips)):
            raise FlowleyError(f"--out {out}: would replace the input video; choose another name")
        for path in paths:
            check_new_file(path, overwrite=overwrite)
    folder = out.parent if is_file(out) else out
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
    candidates: int = 0,
    overwrite: bool = False,
    mixing: Mixing = ONLY_NEW,
) -> Results:
    """Sample sounds for clips and write them to the file `out`, or to `out`/<id><suffix> in a folder.

    With several samples, file names end in _0, _1, …. Clips that cannot be used are listed, and the others
    are sampled. Processes that run the same command on a folder share the clips; those of a process that ends
    early are taken over by the others. In a folder, `samples.jsonl` records how each file was made:

    - A clip whose files were made in the same way from the same video is not sampled again.
    - Sounds that were made in a different way are replaced, and the log says so.
    - Files that this function did not write for the same clip, or that were changed since, are never
      replaced.

    Args:
      sampler: the model.
      clips: videos, parts of videos or texts, with their prompts.
      out: a file for one clip, or a folder.
      suffix: .mp4, .mkv or .mov for the video with its sound, without re-encoding the picture unless a part
        is taken; .wav or .flac for the sound only.
      seed: seed of the random draws of the clips that have none of their own.
      num_samples: number of sounds per clip.
      candidates: number of sounds to choose them from, see `ranking.best_first`; 0 writes all that are made.
      overwrite: whether the file `out` may be replaced.
      mixing: what is written next to the new sound.

    Raises:
      FlowleyError: there are fewer candidates than samples, the file `out` exists and `overwrite` is false, a
        process with other clips or settings writes to the folder, or `samples.jsonl` cannot be read.
    """
    options = {"seed": seed, "num_samples": num_samples, "candidates": candidates, "mixing": mixing}
    jobs = make_jobs(sampler, clips, out, suffix=suffix, **options)
    run = functools.partial(_Run, sampler, **options)
    if is_file(out):
        remove_partials(out.parent, unchanged_seconds=_ABANDONED_SECONDS)
        plan = make_plan(jobs, None)
        for path in (path for job in plan.todo for path in job.paths):
            check_new_file(path, overwrite=overwrite)
        return run(plan).results(out)
    with name_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(Team(out, task_of(jobs))) as team:
        if team.is_first:
            remove_partials(out)
        with team.turn():
            sample_log = SampleLog(out, team.turn)
        plan = make_plan(jobs, sample_log)
        shares = Shares(plan.todo, sample_log, team, batch=sampler.rooms[-1])
        return run(plan, sample_log, shares).results(out)


class _Run:
    """Samples and writes what a plan has to do."""

    def __init__(
        self,
        sampler: Sampler,
        plan: Plan,
        sample_log: SampleLog | None = None,
        shares: Shares | None = None,
        *,
        seed: int,
        num_samples: int,
        candidates: int,
        mixing: Mixing,
    ):
        self._sampler = sampler
        self._plan = plan
        self._log = sample_log
        self._shares = shares
        self._seed = seed
        self._num_samples, self._ranks = num_samples, bool(candidates)
        self._made = max(num_samples, candidates)
        self._mixing = mixing
        self._results = Results(written=dict(plan.done), failed=list(plan.failed))
        # The lines at the end of a run of many clips may never be printed.
        self._says_failures_at_once = len(plan.todo) + len(plan.failed) > 1

    def results(self, out: Path) -> Results:
        """Sample and write all jobs, and return the results."""
        if self._says_failures_at_once:
            for line in self._plan.failed:
                log.info("failed: %s", line)
        log_plan(self._plan, self._log, out)
        todo, written, progress = self._plan.todo, 0, _Progress(len(self._plan.todo), self._made)
        shares = self._shares
        rate = self._sampler.components.sample_rate
        levels = SoundLevels(rate, self._sampler.settings.loudness)
        for job, waves in self._sounds(progress):
            try:
                with progress.writing():
                    ranking = best_first(waves, rate) if self._ranks else []
                    if ranking:
                        waves = waves[[index for index, _ in ranking[: self._num_samples]]]
                    _write(job, levels.levelled(job.paths, waves), rate, self._log, self._mixing)
                    if self._log:
                        self._log.add(job.request, [score for _, score in ranking])
            except FlowleyError as error:
                self._add_failure(job, str(error))
                continue
            self._results.written[job.clip.id] = job.paths
            written += 1
            elsewhere = len(shares.done) + len(shares.failed) if shares else 0
            files = job.paths[0] if len(job.paths) == 1 else f"{job.paths[0]} … {job.paths[-1].name}"
            left = format_duration(progress.left(elsewhere))
            log.info("%d/%d %s, %s left", written + elsewhere, len(todo), files, left)
        if shares:
            self._results.written.update(shares.done)
            self._results.failed.extend(shares.failed)
        for line in levels.remarks():
            log.info("%s", line)
        return self._results

    def _sounds(self, progress: "_Progress") -> Iterator[tuple[Job, np.ndarray]]:
        """Yield jobs with the waves (n, N) of all sounds that are made."""
        for jobs in self._shares.groups() if self._shares else [self._plan.todo]:
            group = {job.clip.id: job for job in jobs}
            encoded, gathered = list(self._encoded(jobs)), Gathered(self._made)
            for batch in self._sampler.batches(encoded, self._made):
                sampled = self._sampled(batch, group)
                progress.add_sampled(len(batch))
                for track, wave in sampled:
                    if (waves := gathered.add(track, wave)) is not None:
                        yield group[track.clip.id], waves

    def _encoded(self, jobs: Sequence[Job]) -> Iterator[EncodedClip]:
        """Yield the features of the clips that can be used."""
        for job in jobs:
            try:
                if job.clip.path:
                    check_file(job.clip.path)
                    _check_picture(job.clip, job.clip.path, job.paths[0], in_folder=self._log is not None)
                yield encode_input(self._sampler, job.clip, self._mixing.keep)
            except CLIP_ERRORS as error:
                self._add_failure(job, failure_line(job.clip.name, error))

    def _sampled(
        self, batch: Sequence[Track[EncodedClip]], jobs: Mapping[str, Job]
    ) -> list[tuple[Track[EncodedClip], np.ndarray]]:
        """Return the sounds of a batch with their waves; if the batch fails, they are sampled one by one."""
        try:
            return self._sampler.sample(batch, seed=self._seed)
        except CLIP_ERRORS as error:
            if len(batch) == 1:
                job = jobs[batch[0].clip.id]
                line = failure_line(job.clip.name, error)
                # Several sounds of a clip mostly fail alike.
                if line not in self._results.failed:
                    self._add_failure(job, line)
                return []
        log.info("a batch of %d sounds failed; sampling them one by one", len(batch))
        return [sound for track in batch for sound in self._sampled([track], jobs)]

    def _add_failure(self, job: Job, line: str) -> None:
        self._results.failed.append(line)
        if self._log:
            # Other processes need this row, but a full disk must not end this one.
            with contextlib.suppress(FlowleyError):
                self._log.add_failure(job.clip.id, line)
        if self._says_failures_at_once:
            log.info("failed: %s", line)


class _Progress:
    """Estimates the time that is left, from the times of sampling and of writing so far.

    Clips are sampled in batches and then written one by one, so the number of files alone would mislead.

    Args:
      clips: number of clips.
      num_samples: number of sounds per clip.
    """

    def __init__(self, clips: int, num_samples: int):
        self._clips, self._num_samples = clips, num_samples
        self._started, self._write_seconds = time.monotonic(), 0.0
        self._sampled = self._written = 0.0

    def add_sampled(self, sounds: int) -> None:
        """Count the sounds of a batch as sampled."""
        self._sampled += sounds / self._num_samples

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Measure the writing of a clip's sounds in the block."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._write_seconds += time.monotonic() - started
            self._written += 1

    def left(self, elsewhere: int = 0) -> float:
        """Return the estimated seconds that are left, after a clip has been written.

        Args:
          elsewhere: number of clips that other processes have finished meanwhile.
        """
        clips = self._clips - elsewhere
        sample_seconds = time.monotonic() - self._started - self._write_seconds
        sampling = sample_seconds / self._sampled * (clips - self._sampled)
        writing = self._write_seconds / self._written * (clips - self._written)
        return (sampling + writing) * self._written / (self._written + elsewhere)


def _check_picture(clip: InputClip, video: Path, out: Path, *, in_folder: bool) -> None:
    """Check before the sampling, which takes long, that the new file can hold the picture."""
    if has_suffix(out, AUDIO_SUFFIXES):
        return
    try:
        check_picture(video, out, start=clip.start, end=clip.end)
    except MediaError:
        raise
    except FlowleyError as error:
        hint = " (such as --kind mkv)" if in_folder else ""
        raise FlowleyError(f"{error}{hint}") from error


def encode_input(sampler: Sampler, clip: InputClip, keep: Keep = ()) -> EncodedClip:
    """Return the features of a clip. Its frames take much more memory, and few are held at a time.

    Args:
      keep: parts of the clip's own sound that stay, as start and end in seconds.

    Raises:
      FlowleyError: the video cannot be used, or `keep` names no part of it.
    """
    fps, size = sampler.components.video_fps, sampler.components.video_encoder.frame_size
    options = {"id": clip.id, "prompt": clip.prompt, "negative_prompt": clip.negative_prompt}
    options["seed"] = clip.seed
    if clip.path is None:
        return sampler.encode(Clip(seconds=clip.end, **options))
    if keep:
        rate = sampler.components.sample_rate
        own = read_audio(clip.path, sample_rate=rate)
        options |= {"own_sound": own[round(clip.start * rate) :], "keep": keep}
    stated = probe(clip.path).duration
    frames = frame_blocks(clip.path, fps=fps, size=size, start=clip.start, end=clip.end)
    encoded = sampler.encode(Clip(frames=frames, **options))
    if keep and min(start for start, _ in keep) >= encoded.seconds:
        raise FlowleyError(f"{clip.path}: --keep names no part of it; it has {encoded.seconds:.2f} s")
    end = clip.start + encoded.seconds
    expected = stated if clip.end is None else min(stated, clip.end)
    if expected - end > _NOTED_SECONDS:
        log.info("%s: its picture ends at %.2f s of %.2f s", clip.path, end, stated)
    return encoded


def _write(
    job: Job, waves: np.ndarray, sample_rate: int, sample_log: SampleLog | None, mixing: Mixing
) -> None:
    """Write the waves (num_samples, N) of one clip; the files get their names when all are complete."""
    clip = job.clip
    claim = functools.partial(sample_log.claim, clip.id) if sample_log else None
    with staged(job.paths, claim) as partials:
        for path, partial, wave in zip(job.paths, partials, waves, strict=True):
            with name_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            try:
                sound, rate = mixed(wave, sample_rate, mixing, clip.path, start=clip.start)
                if clip.path is None or partial.suffix in AUDIO_SUFFIXES:
                    write_audio(partial, sound, rate)
                else:
                    mux_audio(clip.path, sound, rate, partial, start=clip.start, end=clip.end)
            except FlowleyError as error:
                raise FlowleyError(str(error).replace(str(partial), str(path))) from error
