"""The training step compiled for devices that need not be there, and what it will cost on them."""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flowley_jax.config import ExperimentConfig, MeshConfig
from flowley_jax.data.record import FEATURE_FIELDS
from flowley_jax.errors import FlowleyError
from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.training.chips import Chip, devices_of
from flowley_jax.training.collectives import collectives
from flowley_jax.training.optimizer import make_optimizer
from flowley_jax.training.sharding import Layout, make_layout
from flowley_jax.training.state import TrainState, abstract_state
from flowley_jax.training.step import make_train_step

# Ta, Tv and Tt of a clip.
Lengths = tuple[int, int, int]


class DoesNotFitError(FlowleyError):
    """The compiler found no way to hold a program in a chip's memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of one step on one topology; bytes are those of one device.

    Attributes:
      topology, devices, mesh: what it was compiled for.
      clips, tokens: of a batch.
      memory: bytes by kind.
      chip_memory: bytes that a chip has; 0 on CPU.
      flops: of the network's forward and backward pass for the whole batch, without recomputation.
      exchanges: count and bytes by kind of collective.
      step_seconds: at the stated share of the chips' peak; 0 on CPU.
      compile_seconds: of this machine.
    """

    topology: str
    devices: int
    mesh: dict[str, int]
    clips: int
    tokens: int
    memory: dict[str, int]
    chip_memory: int
    flops: float
    exchanges: dict[str, tuple[int, int]]
    step_seconds: float
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether a device's memory holds the step."""
        return not self.chip_memory or sum(self.memory.values()) <= self.chip_memory


def compile_step(config: ExperimentConfig, topology: str, *, slices: int, mfu: float) -> Estimate:
    """Compiles the real training step for a topology and reads off what it needs.

    Args:
      topology: such as v5e:4x4, or cpu.
      slices: number of such slices, connected by the data-centre network.
      mfu: share of the chips' peak that the network's FLOPs are assumed to reach.

    Raises:
      FlowleyError: the topology does not exist, or the mesh does not fit it.
      DoesNotFitError: the step needs more memory than a chip has.
    """
    devices, chip = devices_of(topology, slices=slices)
    layout = make_layout(config, devices)
    state, batch, step = _abstract_step(config, layout, lengths(config))
    started = time.perf_counter()
    compiled: Any = compiled_or_too_large(step.lower(state, batch), topology)
    seconds = time.perf_counter() - started
    flops = step_flops(config, lengths(config))
    return Estimate(
        topology=topology if slices == 1 else f"{slices} × {topology}",
        devices=len(devices),
        mesh=dict(layout.mesh.shape),
        clips=config.data.batch_size,
        tokens=config.data.batch_size * sum(lengths(config)),
        memory=_memory(state, batch, compiled.memory_analysis()),
        chip_memory=chip.memory if chip else 0,
        flops=flops,
        exchanges=collectives(compiled.as_text()),
        step_seconds=_seconds(flops, len(devices), chip, mfu),
        compile_seconds=seconds,
    )


def compiled_or_too_large(lowered: jax.stages.Lowered, topology: str) -> jax.stages.Compiled:
    """Compiles a program; raises DoesNotFitError where the compiler runs out of the chip's memory."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        raise DoesNotFitError(
            f"{topology}: does not fit: {text.partition('RESOURCE_EXHAUSTED: ')[2][:200]}"
        ) from error


def step_flops(config: ExperimentConfig, lengths: Lengths) -> float:
    """FLOPs of forward and backward pass and of the optimiser for one batch, as XLA counts them in a program
    without loops and recomputation.

    Raises:
      RuntimeError: JAX has no CPU device here.
    """
    plain = dataclasses.replace(
        config,
        model=_counted(config.model),
        mesh=MeshConfig(),
        flow=dataclasses.replace(config.flow, immiscible=False),
        train=dataclasses.replace(config.train, accumulation=1),
    )
    state, batch, step = _abstract_step(plain, make_layout(plain, jax.devices("cpu")[:1]), lengths)
    costs: Any = step.lower(state, batch).cost_analysis()
    return float(costs["flops"])


def velocity_flops(config: ModelConfig, clips: int, lengths: Lengths) -> float:
    """FLOPs of one evaluation of the network, counted likewise.

    Raises:
      RuntimeError: JAX has no CPU device here.
    """
    model = nnx.eval_shape(lambda: Flowley(_counted(config), rngs=nnx.Rngs(0)))
    graphdef, variables = nnx.split(model)
    channels = (config.audio_dim, config.video_dim, config.text_dim)
    features = [
        jax.ShapeDtypeStruct((clips, length, size), jnp.float32)
        for length, size in zip(lengths, channels, strict=True)
    ]
    text_len, t = (jax.ShapeDtypeStruct((clips,), dtype) for dtype in (jnp.int32, jnp.float32))
    program = jax.jit(lambda variables, *inputs: nnx.merge(graphdef, variables)(*inputs))
    with jax.default_device(jax.devices("cpu")[0]):
        costs: Any = program.lower(variables, *features, text_len, t).cost_analysis()
    return float(costs["flops"])


def _counted(config: ModelConfig) -> ModelConfig:
    """Without loops, whose body would be counted once, without recomputation and without kernels."""
    return dataclasses.replace(
        config, layers="unrolled", remat="none", psca_implementation="xla", attention_implementation="xla"
    )


def lengths(config: ExperimentConfig) -> Lengths:
    """Ta, Tv and Tt of the clips that are compiled for."""
    data = config.data
    seconds = data.generate_seconds
    return (
        round(seconds * data.latent_rate),
        round(seconds * config.model.video_fps),
        data.generate_text_length,
    )


def _abstract_step(config: ExperimentConfig, layout: Layout, lengths: Lengths):
    optimizer = make_optimizer(config.optim, config.train.steps)
    graphdef, state = abstract_state(config, optimizer, layout)
    step = make_train_step(config, graphdef, optimizer, layout)
    return state, _abstract_batch(config, layout, lengths), step


def _abstract_batch(
    config: ExperimentConfig, layout: Layout, lengths: Lengths
) -> dict[str, jax.ShapeDtypeStruct]:
    model, clips = config.model, config.data.batch_size
    audio, video, text = lengths
    shapes = {
        "audio_mean": (audio, model.audio_dim),
        "audio_std": (audio, model.audio_dim),
        "video_features": (video, model.video_dim),
        "text_features": (text, model.text_dim),
    }
    batch = {
        name: jax.ShapeDtypeStruct((clips, *shape), model.dtype if name in FEATURE_FIELDS else jnp.float32)
        for name, shape in shapes.items()
    }
    batch["text_len"] = jax.ShapeDtypeStruct((clips,), jnp.int32)
    batch["has_video"] = jax.ShapeDtypeStruct((clips,), jnp.bool_)
    return layout.placed(batch, dict.fromkeys(batch, layout.batch))


def _memory(state: TrainState, batch, analysis) -> dict[str, int]:
    return {
        "parameters": device_bytes(state.parameters),
        "optimiser": device_bytes(state.optimizer),
        "averages": device_bytes(state.averages),
        "batch": device_bytes(batch),
        "temporaries": analysis.temp_size_in_bytes,
        # The new state takes the old one's place.
        "other": analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.generated_code_size_in_bytes,
    }


def device_bytes(shapes: Any) -> int:
    """Bytes that one device holds of arrays with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )


def _seconds(flops: float, devices: int, chip: Chip | None, mfu: float) -> float:
    return flops / (devices * chip.peak_flops * mfu) if chip else 0.0
