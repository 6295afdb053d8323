"""A report of the stages of sampling, their shapes and memory, before any sound is made."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flowley_jax.audio.protocols import FRAMES_PER_LATENT
from flowley_jax.common.component import Component, ProgramMemory
from flowley_jax.flow.sampler import latents_program
from flowley_jax.flow.solver import ADAPTIVE
from flowley_jax.sampling.sampler import Sampler

MIB = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageReport:
    """One stage of sampling.

    Attributes:
      stage: name of the stage.
      component: name of the network or component that runs.
      location: where its weights are.
      shapes: shapes of its input and output.
      memory: memory that its program needs on each device.
    """

    stage: str
    component: str
    location: str
    shapes: str
    memory: ProgramMemory


def dry_run(sampler: Sampler, *, frames: int, clips: int) -> list[StageReport]:
    """Compile every stage of sampling and return its report.

    Args:
      sampler: the sampler.
      frames: frames of each clip.
      clips: clips that are sampled together; several sounds of one clip count separately.
    """
    components = sampler.components
    latents = components.audio_length_for(frames / components.video_fps)
    video, text = components.video_encoder, components.text_encoder
    codec, vocoder, mel = components.codec, components.vocoder, components.codec.mel
    pictures = (frames, video.frame_size, video.frame_size, 3)
    tokens = (clips, text.max_tokens)
    mel_frames = FRAMES_PER_LATENT * latents
    log_mels = (clips, mel_frames, mel.bins)
    waves = (clips, mel_frames * mel.hop)
    return [
        _report(
            "video features", video, f"frames {pictures} to {(frames, video.dim)}", clips=1, length=frames
        ),
        _report(
            "text features",
            text,
            f"tokens {tokens} to {(*tokens, text.dim)}",
            clips=clips,
            length=text.max_tokens,
        ),
        _report_latents(sampler, frames=frames, latents=latents, clips=clips),
        _report(
            "log-mel frames",
            codec,
            f"latents {(clips, latents, codec.latent_dim)} to {log_mels}",
            clips=clips,
            length=latents,
        ),
        _report(
            "waves",
            vocoder,
            f"{log_mels} to waves {waves} at {mel.sample_rate} Hz",
            clips=clips,
            length=mel_frames,
        ),
    ]


def format_reports(reports: Sequence[StageReport]) -> str:
    """Return the reports as text; the last line is the maximum memory that a device needs."""
    lines = []
    for report in reports:
        lines.append(f"{report.stage}: {report.component}, {report.shapes}")
        lines.append(f"  {report.location}")
        if report.memory.weights:
            weights, temporaries = report.memory.weights / MIB, report.memory.temporaries / MIB
            lines.append(f"  weights {weights:,.0f} MiB, temporaries {temporaries:,.0f} MiB")
    memories = [report.memory for report in reports]
    peak = sum(memory.weights for memory in memories) + max(memory.temporaries for memory in memories)
    return "\n".join([*lines, f"memory per device at most {peak / MIB:,.0f} MiB"])


def _report(stage: str, component: Component, shapes: str, *, clips: int, length: int) -> StageReport:
    return StageReport(
        stage=stage,
        component=component.name,
        location=component.location,
        shapes=shapes,
        memory=component.memory(clips=clips, length=length),
    )


def _report_latents(sampler: Sampler, *, frames: int, latents: int, clips: int) -> StageReport:
    settings, dims = sampler.settings, sampler.components.dims
    compiled: Any = latents_program.lower(
        sampler.graphdef,
        sampler.variables,
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), clips)),
        jax.ShapeDtypeStruct((clips, frames, dims.video_dim), jnp.float32),
        jax.ShapeDtypeStruct((clips, dims.text_length, dims.text_dim), jnp.float32),
        jax.ShapeDtypeStruct((clips,), jnp.int32),
        audio_length=latents,
        guidance=float(settings.guidance),
        solver=settings.solver,
    ).compile()
    solver = settings.solver
    evaluations = f"{solver.name}, guidance {settings.guidance:g}"
    if solver.name not in ADAPTIVE:
        evaluations = f"{solver.steps} steps of {evaluations}"
    return StageReport(
        stage="latents",
        component=f"Flowley's network, {evaluations}",
        location=sampler.weights_path,
        shapes=f"noise {(clips, latents, dims.audio_dim)} to the same",
        memory=ProgramMemory(
            weights=sum(leaf.nbytes for leaf in jax.tree.leaves(sampler.variables)),
            temporaries=compiled.memory_analysis().temp_size_in_bytes,
        ),
    )
