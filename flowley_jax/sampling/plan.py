"""What sampling will do, stage by stage, before any sound is made."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flowley_jax.audio import bigvgan_vocoder, vae_codec
from flowley_jax.audio.bigvgan_vocoder import BigVganVocoder
from flowley_jax.audio.vae import AudioVae
from flowley_jax.audio.vae_codec import VaeCodec
from flowley_jax.data.parts import Parts
from flowley_jax.encoders import clip_frames
from flowley_jax.encoders.clip_frames import ClipFrames
from flowley_jax.encoders.t5_text import T5Text, normalised_states
from flowley_jax.flow.solver import ADAPTIVE
from flowley_jax.sampling.latents import latents_program
from flowley_jax.sampling.sampler import Sampler

MIB = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One line of the plan.

    Attributes:
      name, what, file: of the stage, of the part that does it, and where its weights are.
      shapes: what goes in and what comes out.
      weights, temporaries: bytes of memory on each device; 0 where no device program runs.
    """

    name: str
    what: str
    file: str
    shapes: str
    weights: int = 0
    temporaries: int = 0


def plan(sampler: Sampler, *, frames: int, clips: int) -> list[Stage]:
    """Compiles every stage for clips of so many frames.

    Args:
      frames: T of each clip.
      clips: that are sampled together, several sounds of one clip included.
    """
    parts = sampler.parts
    seconds = frames / parts.video_fps
    latents = parts.audio_length_for(seconds)
    return [
        _video(parts, frames),
        _text(parts, clips),
        _flow(sampler, frames, latents, clips),
        _codec(parts, latents, clips),
        _vocoder(parts, latents, clips),
    ]


def table(stages: Sequence[Stage]) -> str:
    """The plan as text; the last line is the most memory that a device needs at once."""
    lines = []
    for stage in stages:
        lines.append(f"{stage.name}: {stage.what}, {stage.shapes}")
        lines.append(f"  {stage.file}")
        if stage.weights:
            weights, temporaries = stage.weights / MIB, stage.temporaries / MIB
            lines.append(f"  weights {weights:,.0f} MiB, temporaries {temporaries:,.0f} MiB")
    needed = sum(stage.weights for stage in stages) + max(stage.temporaries for stage in stages)
    return "\n".join([*lines, f"memory of a device at most {needed / MIB:,.0f} MiB"])


def _video(parts: Parts, frames: int) -> Stage:
    encoder = parts.video_encoder
    shape = (frames, encoder.frame_size, encoder.frame_size, 3)
    memory = {}
    if isinstance(encoder, ClipFrames):
        batch = (min(frames, clip_frames.BATCH_SIZE), *shape[1:])
        memory = _memory(encoder, clip_frames.embeddings, jax.ShapeDtypeStruct(batch, jnp.uint8))
    return _stage("video features", encoder, f"frames {shape} to ({frames}, {encoder.dim})", memory)


def _text(parts: Parts, clips: int) -> Stage:
    encoder = parts.text_encoder
    shape = (clips, encoder.max_tokens)
    memory = {}
    if isinstance(encoder, T5Text):
        ids, valid = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.bool_))
        memory = _memory(encoder, normalised_states, ids, valid)
    return _stage("text features", encoder, f"tokens {shape} to {(*shape, encoder.dim)}", memory)


def _flow(sampler: Sampler, frames: int, latents: int, clips: int) -> Stage:
    parts, settings = sampler.parts, sampler.settings
    dims = parts.dims
    text = jax.ShapeDtypeStruct((clips, dims.text_length, dims.text_dim), jnp.float32)
    compiled: Any = latents_program.lower(
        sampler.graphdef,
        sampler.variables,
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), clips)),
        jax.ShapeDtypeStruct((clips, frames, dims.video_dim), jnp.float32),
        text,
        jax.ShapeDtypeStruct((clips,), jnp.int32),
        audio_length=latents,
        guidance=float(settings.guidance),
        solver=settings.solver,
    ).compile()
    solver = settings.solver
    evaluations = f"{solver.name}, guidance {settings.guidance:g}"
    if solver.name not in ADAPTIVE:
        evaluations = f"{solver.steps} steps of {evaluations}"
    return Stage(
        name="latents",
        what=f"Flowley's network, {evaluations}",
        file=sampler.place,
        shapes=f"noise {(clips, latents, dims.audio_dim)} to the same",
        weights=sum(leaf.nbytes for leaf in jax.tree.leaves(sampler.variables)),
        temporaries=compiled.memory_analysis().temp_size_in_bytes,
    )


def _codec(parts: Parts, latents: int, clips: int) -> Stage:
    codec, memory = parts.codec, {}
    if isinstance(codec, VaeCodec):
        window = min(latents, vae_codec.WINDOW)
        width = codec.config.width * codec.config.multipliers[-1]
        hidden = jax.ShapeDtypeStruct((clips, window, width), jnp.float32)
        memory = _memory(codec, AudioVae.finish, hidden)
    mels = (clips, 2 * latents, codec.mel.bins)
    return _stage("log-mel frames", codec, f"latents {(clips, latents, codec.latent_dim)} to {mels}", memory)


def _vocoder(parts: Parts, latents: int, clips: int) -> Stage:
    vocoder, mel, memory = parts.vocoder, parts.codec.mel, {}
    frames = 2 * latents
    if isinstance(vocoder, BigVganVocoder):
        window = min(frames, bigvgan_vocoder.WINDOW)
        shape = jax.ShapeDtypeStruct((clips, window, mel.bins), jnp.float32)
        memory = _memory(vocoder, bigvgan_vocoder.waves, shape)
    shapes = f"{(clips, frames, mel.bins)} to waves {(clips, frames * mel.hop)} at {mel.sample_rate} Hz"
    return _stage("waves", vocoder, shapes, memory)


def _stage(name: str, part: Any, shapes: str, memory: dict[str, int]) -> Stage:
    bundle = getattr(part, "bundle", None)
    file = str(bundle.place) if bundle else "embedded in the program, on the host"
    return Stage(name=name, what=part.name, file=file, shapes=shapes, **memory)


def _memory(part: Any, function: Callable[..., Any], *shapes: jax.ShapeDtypeStruct) -> dict[str, int]:
    graphdef, state = nnx.split(part.bundle.abstract(dtype=part.dtype))
    program = jax.jit(lambda state, *arrays: function(nnx.merge(graphdef, state), *arrays))
    analysis: Any = program.lower(state, *shapes).compile().memory_analysis()
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return {"weights": weights, "temporaries": analysis.temp_size_in_bytes}
