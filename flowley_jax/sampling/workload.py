"""Plan what sampling has to do for clips from their lengths, without decoding a picture."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowley_jax.flow.windows import WindowLengths, Windows, plan_windows
from flowley_jax.media.mix import ONLY_NEW, Mixing
from flowley_jax.media.read import frame_count
from flowley_jax.sampling.batches import Track, compiled_room_for
from flowley_jax.sampling.clips import frames_of_text
from flowley_jax.sampling.failures import CLIP_ERRORS, check_file, failure_line
from flowley_jax.sampling.inputs import InputClip
from flowley_jax.sampling.plan import is_file, make_jobs, make_plan
from flowley_jax.sampling.sample_log import SampleLog
from flowley_jax.sampling.sampler import Sampler, group_size


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PlannedClip:
    """A clip whose length is known.

    Attributes:
      clip: the clip.
      frames: number of its frames.
      seconds: length of its sound.
      windows: the windows that cover it.
    """

    clip: InputClip
    frames: int
    seconds: float
    windows: Windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedBatch:
    """Sounds that are sampled together.

    Attributes:
      tracks: the sounds.
      room: number of windows that the program has room for.
      at_once: number of windows that the network computes at once.
    """

    tracks: Sequence[Track[PlannedClip]]
    room: int
    at_once: int

    @property
    def windows(self) -> int:
        """Number of windows in use."""
        return sum(map(len, self.tracks))

    @property
    def computed_windows(self) -> int:
        """Number of windows that the network computes in each evaluation, unused ones included."""
        return -(-self.windows // self.at_once) * self.at_once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Clips to sample, and how they are sampled.

    Attributes:
      groups: clips whose features are in memory at the same time.
      batches: the batches of all groups.
      num_samples: number of sounds to make per clip, candidates included.
      done: number of clips whose sounds exist.
      failed: one line for every clip that cannot be used.
    """

    groups: Sequence[Sequence[PlannedClip]]
    batches: Sequence[PlannedBatch]
    num_samples: int
    done: int
    failed: Sequence[str]

    @property
    def clips(self) -> list[PlannedClip]:
        """All clips to sample."""
        return [clip for group in self.groups for clip in group]

    @property
    def largest_batch(self) -> PlannedBatch:
        """The batch that needs the most memory."""
        return max(self.batches, key=lambda batch: batch.room)

    @property
    def rooms(self) -> list[int]:
        """Rooms of the network's programs, ascending."""
        return sorted({batch.room for batch in self.batches})


def plan_workload(
    sampler: Sampler,
    clips: Sequence[InputClip],
    out: Path | None,
    *,
    suffix: str = ".mp4",
    seed: int = 0,
    num_samples: int = 1,
    candidates: int = 0,
    mixing: Mixing = ONLY_NEW,
) -> Workload:
    """Plan what `write_sounds` would do; nothing is written.

    Args:
      sampler: the model.
      clips: videos, parts of videos or texts.
      out: where the sounds would go; None leaves out the faults of output files, and what exists.
      suffix, seed, num_samples, candidates, mixing: as for `write_sounds`.

    Raises:
      FlowleyError: the log of the folder `out` cannot be read, or a window is shorter than a frame.
    """
    lengths = sampler.window
    options = {"suffix": suffix, "seed": seed, "num_samples": num_samples, "candidates": candidates}
    options["mixing"] = mixing
    todo, done, failed = _todo(sampler, clips, out, options)
    groups = []
    while todo:
        size, group = group_size(len(todo), sampler.rooms[-1]), []
        taken, todo = todo[:size], todo[size:]
        for clip in taken:
            try:
                group.append(_planned(sampler, clip, lengths))
            except CLIP_ERRORS as error:
                failed.append(failure_line(clip.name, error))
        groups.append(group)
    return Workload(
        groups=groups,
        batches=_batches(sampler, groups, max(num_samples, candidates)),
        num_samples=max(num_samples, candidates),
        done=done,
        failed=failed,
    )


def without(workload: Workload, sampler: Sampler, clip: PlannedClip, failure: str) -> Workload:
    """Return the workload without a clip that turned out to be unusable, and with the line that says why."""
    groups = [[other for other in group if other is not clip] for group in workload.groups]
    return dataclasses.replace(
        workload,
        groups=groups,
        batches=_batches(sampler, groups, workload.num_samples),
        failed=[*workload.failed, failure],
    )


def _todo(
    sampler: Sampler,
    clips: Sequence[InputClip],
    out: Path | None,
    options: dict[str, Any],
) -> tuple[list[InputClip], int, list[str]]:
    """Return the clips to sample, the number of those that are done, and a line for each of the others."""
    if out is None:
        return [clip for clip in clips if not clip.fault], 0, [clip.fault for clip in clips if clip.fault]
    sample_log = None if is_file(out) else SampleLog(out)
    plan = make_plan(make_jobs(sampler, clips, out, **options), sample_log)
    return [job.clip for job in plan.todo], len(plan.done), plan.failed


def _planned(sampler: Sampler, clip: InputClip, lengths: WindowLengths) -> PlannedClip:
    """Return a clip with its length.

    Raises:
      FlowleyError: its file cannot be used, or its prompt is too long for an encoder that runs on the host.
    """
    components = sampler.components
    fps = components.video_fps
    if clip.path is None:
        assert clip.end is not None
        frames, seconds = frames_of_text(clip.end, fps), clip.end
    else:
        check_file(clip.path)
        frames = frame_count(clip.path, fps=fps, start=clip.start, end=clip.end)
        seconds = frames / fps
    if components.text_encoder.runs_on_host:
        components.features_of_text(prompts_of(sampler, clip))
    windows = plan_windows(frames, lengths, overlap=sampler.settings.overlap)
    return PlannedClip(clip=clip, frames=frames, seconds=seconds, windows=windows)


def prompts_of(sampler: Sampler, clip: InputClip) -> list[str]:
    """Return the two texts that are encoded for a clip."""
    negative_prompt = (
        sampler.settings.negative_prompt if clip.negative_prompt is None else clip.negative_prompt
    )
    return [clip.prompt, negative_prompt]


def _batches(
    sampler: Sampler, groups: Sequence[Sequence[PlannedClip]], num_samples: int
) -> list[PlannedBatch]:
    planned, compiled = [], set()
    for group in groups:
        for tracks in sampler.batches(group, num_samples):
            room = compiled_room_for(sum(map(len, tracks)), sampler.rooms, compiled)
            compiled.add(room)
            planned.append(PlannedBatch(tracks=tracks, room=room, at_once=sampler.program(room).at_once))
    return planned
