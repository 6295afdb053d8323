"""An estimate of the time and memory of sampling, before any sound is made."""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowley_jax.audio.protocols import FRAMES_PER_LATENT
from flowley_jax.common.component import Component, ProgramMemory
from flowley_jax.flow.solver import ADAPTIVE
from flowley_jax.flow.stretches import network_evaluations
from flowley_jax.media.mix import ONLY_NEW, Mixing
from flowley_jax.media.read import frame_blocks
from flowley_jax.sampling.failures import CLIP_ERRORS, failure_line
from flowley_jax.sampling.inputs import InputClip
from flowley_jax.sampling.network_cost import NetworkCost, network_cost
from flowley_jax.sampling.sampler import WINDOWS_AT_ONCE, Sampler
from flowley_jax.sampling.workload import Workload, plan_workload, prompts_of, without

log = logging.getLogger(__name__)
# Seconds of the first video that are read and encoded.
_MEASURED_SECONDS = 2.0
_FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageReport:
    """One stage of sampling.

    Attributes:
      stage: name of the stage.
      component: name of the network or component that runs, and where its weights are.
      memory: memory that its program needs on each device.
      seconds: estimated time for all clips; None if it was not measured.
    """

    stage: str
    component: str
    memory: ProgramMemory
    seconds: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Time and memory that sampling would take.

    Attributes:
      workload: the clips, and how they are sampled.
      window_seconds: length of a window.
      evaluations: number of network evaluations per window.
      is_least: whether an adaptive solver may need more of them.
      solver: the solver in words.
      network: measured cost of the network's largest program.
      stages: all stages in their order.
      host: bytes on the host by name, of what grows with the length of the clips.
    """

    workload: Workload
    window_seconds: float
    evaluations: int
    is_least: bool
    solver: str
    network: NetworkCost
    stages: Sequence[StageReport]
    host: Mapping[str, int]


def dry_run(
    sampler: Sampler,
    clips: Sequence[InputClip],
    out: Path | None = None,
    *,
    suffix: str = ".mp4",
    seed: int = 0,
    num_samples: int = 1,
    candidates: int = 0,
    mixing: Mixing = ONLY_NEW,
) -> tuple[Estimate | None, Sequence[str]]:
    """Estimate what `write_sounds` would take; nothing is written.

    The network's largest program is compiled and evaluated once; of the first video, a few seconds are read
    and encoded; and one window of latents is decoded.

    Args:
      sampler: the model.
      clips: videos, parts of videos or texts.
      out: where the sounds would go; None leaves out the faults of output files, and what exists.
      suffix, seed, num_samples, candidates, mixing: as for `write_sounds`.

    Returns:
      The estimate, or None if no clip is left to sample; and one line for every clip that cannot be used.

    Raises:
      FlowleyError: the log of the folder `out` cannot be read, or the window is too short.
    """
    workload = plan_workload(
        sampler,
        clips,
        out,
        suffix=suffix,
        seed=seed,
        num_samples=num_samples,
        candidates=candidates,
        mixing=mixing,
    )
    workload, reading, encoding = _measured_video(sampler, workload)
    if not workload.clips:
        return None, workload.failed
    settings, components = sampler.settings, sampler.components
    log.info("measuring one network evaluation")
    network = network_cost(sampler, workload.rooms[-1])
    evaluations = network_evaluations(settings.solver, settings.guidance_form)
    steps = "" if settings.solver.name in ADAPTIVE else f"{settings.solver.steps} steps of "
    estimate = Estimate(
        workload=workload,
        window_seconds=sampler.window.video / components.video_fps,
        evaluations=evaluations,
        is_least=settings.solver.name in ADAPTIVE,
        solver=f"{steps}{settings.solver.name}, guidance {settings.guidance:g}",
        network=network,
        stages=[
            *_video_stages(sampler, workload, reading, encoding),
            _text_stage(sampler, workload),
            _network_stage(sampler, workload, network, evaluations),
            *_decoding_stages(sampler, workload),
        ],
        host=_host_memory(sampler, workload),
    )
    return estimate, workload.failed


def _measured_video(sampler: Sampler, workload: Workload) -> tuple[Workload, float, float]:
    """Read and encode the beginning of the first video that can be read.

    Returns:
      The workload without the videos before it, and the seconds that a frame takes to read and to encode.
    """
    encoder = sampler.components.video_encoder
    for planned in workload.clips:
        clip = planned.clip
        if clip.path is None:
            continue
        end = clip.start + min(planned.seconds, _MEASURED_SECONDS)
        try:
            started = time.monotonic()
            blocks = list(
                frame_blocks(clip.path, fps=encoder.fps, size=encoder.frame_size, start=clip.start, end=end)
            )
            read = time.monotonic() - started
        except CLIP_ERRORS as error:
            workload = without(workload, sampler, planned, failure_line(clip.name, error))
            continue
        frames = np.concatenate(blocks)
        return workload, read / len(frames), _timed(functools.partial(encoder, frames)) / len(frames)
    return workload, 0.0, 0.0


def _video_stages(sampler: Sampler, workload: Workload, reading: float, encoding: float) -> list[StageReport]:
    """Return the stages of the videos, given the seconds that a frame takes to read and to encode."""
    frames = [planned.frames for planned in workload.clips if planned.clip.path]
    if not frames:
        return []
    # Shorter videos are filled up.
    encoded = [max(count, sampler.window.video) for count in frames]
    encoder = sampler.components.video_encoder
    reader = StageReport(
        stage="frames", component="decoder", memory=ProgramMemory(), seconds=reading * sum(frames)
    )
    seconds = encoding * sum(encoded)
    return [reader, _report("video features", encoder, seconds, clips=1, length=max(encoded))]


def _text_stage(sampler: Sampler, workload: Workload) -> StageReport:
    encoder = sampler.components.text_encoder
    texts = prompts_of(sampler, workload.clips[0].clip)
    seconds = _timed(lambda: [encoder([text]) for text in texts]) * len(workload.clips)
    return _report("text features", encoder, seconds, clips=1, length=encoder.max_tokens)


def _network_stage(
    sampler: Sampler, workload: Workload, network: NetworkCost, evaluations: int
) -> StageReport:
    windows = sum(batch.computed_windows for batch in workload.batches)
    return StageReport(
        stage="latents",
        component=f"Flowley's network, {sampler.weights_path}",
        memory=network.memory,
        seconds=None
        if network.seconds is None
        else network.seconds / network.at_once * windows * evaluations,
    )


def _decoding_stages(sampler: Sampler, workload: Workload) -> list[StageReport]:
    components, length = sampler.components, sampler.window.audio
    latents = np.repeat(components.latent_mean[None, None], length, axis=1)
    log_mels = components.decode_latents(latents)
    codec_seconds = _timed(lambda: components.decode_latents(latents))
    vocoder_seconds = _timed(lambda: components.vocode(log_mels))
    tracks = [track for batch in workload.batches for track in batch.tracks]
    total = sum(track.clip.windows.latents for track in tracks)
    longest = max(track.clip.windows.latents for track in tracks)
    windows = sum(map(len, tracks))
    # More are decoded one after the other.
    together = min(workload.largest_batch.windows, WINDOWS_AT_ONCE)
    return [
        _report("log-mel frames", components.codec, codec_seconds * windows, clips=together, length=length),
        _report(
            "waves",
            components.vocoder,
            vocoder_seconds * total / length,
            clips=1 if longest > length else together,
            length=FRAMES_PER_LATENT * longest,
        ),
    ]


def _report(stage: str, component: Component, seconds: float, *, clips: int, length: int) -> StageReport:
    return StageReport(
        stage=stage,
        component=f"{component.name}, {component.location}",
        memory=component.memory(clips=clips, length=length),
        seconds=seconds,
    )


def _host_memory(sampler: Sampler, workload: Workload) -> dict[str, int]:
    """Return the bytes of the features of a group of clips, and of what a batch is decoded to."""
    components, dims = sampler.components, sampler.components.dims
    text = 2 * dims.text_length * dims.text_dim
    features = max(
        sum(planned.windows.frames * dims.video_dim + text for planned in group) for group in workload.groups
    )
    batches = [[track.clip for track in batch.tracks] for batch in workload.batches]
    latents = max(sum(planned.windows.latents for planned in clips) for clips in batches)
    samples = max(sum(planned.seconds for planned in clips) for clips in batches) * components.sample_rate
    numbers = {
        "features": features,
        "latents": latents * dims.audio_dim,
        "log-mel frames": FRAMES_PER_LATENT * latents * components.codec.mel.bins,
        "waves": round(samples),
    }
    return {name: _FLOAT_BYTES * count for name, count in numbers.items()}


def _timed(function: Callable[[], Any]) -> float:
    """Return the seconds of a second call; the first one may load weights and compile."""
    function()
    started = time.monotonic()
    function()
    return time.monotonic() - started
