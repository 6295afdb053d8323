"""FLOPs of a training step and of the network, and the peak rate of the devices: the parts of MFU."""

import dataclasses
import functools
import inspect
import logging
from typing import Any

import jax
import jax.numpy as jnp

from flowley_jax.common.devices import device_spec
from flowley_jax.config import ExperimentConfig, MeshConfig
from flowley_jax.data.record import FEATURE_FIELDS
from flowley_jax.model import ModelConfig
from flowley_jax.model.flowley import abstract_model, merge_model
from flowley_jax.model.recompute import everything_stored
from flowley_jax.training.sharding import Layout, make_layout, with_shardings
from flowley_jax.training.state import StepConfig, abstract_state
from flowley_jax.training.step import train_step

log = logging.getLogger(__name__)
# Ta, Tv and Tt of a clip.
Lengths = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class StepRate:
    """Work and peak rate that model FLOPs utilisation (MFU) compares.

    Attributes:
      flops: FLOPs of one step.
      peak_flops: peak bfloat16 FLOPs per second of all devices together.
    """

    flops: float
    peak_flops: float

    def mfu(self, step_seconds: float) -> float:
        """Return the share of the peak rate that steps of this duration reach."""
        return self.flops / step_seconds / self.peak_flops


def step_rate(config: ExperimentConfig, lengths: Lengths) -> StepRate | None:
    """Return the step's work and the devices' peak rate, or None on devices of unknown peak, such as CPUs."""
    spec = device_spec(jax.devices()[0].device_kind)
    if spec is None:
        return None
    try:
        flops = step_flops(config, lengths)
    except RuntimeError as error:
        log.info("no MFU: FLOPs are counted on a CPU device, and JAX_PLATFORMS excludes the CPU (%s)", error)
        return None
    return StepRate(flops=flops, peak_flops=spec.peak_flops * jax.device_count())


def step_flops(config: ExperimentConfig, lengths: Lengths) -> float:
    """Return the FLOPs of the forward pass, the backward pass and the optimiser for one batch.

    XLA counts them in a program without loops and recomputation.

    Raises:
      RuntimeError: JAX has no CPU device here.
    """
    counted = dataclasses.replace(
        config,
        model=_without_loops(config.model),
        mesh=MeshConfig(),
        flow=dataclasses.replace(config.flow, immiscible=False),
        train=dataclasses.replace(config.train, accumulation=1),
    )
    layout = make_layout(
        counted.mesh,
        counted.model,
        batch_size=counted.data.batch_size,
        devices=jax.devices("cpu")[:1],
    )
    config_of_step = StepConfig.from_experiment(counted)
    # A function of its own, because JAX would take the trace of a step that computes things again.
    step = functools.partial(inspect.unwrap(train_step), config=config_of_step, layout=layout)
    with everything_stored():
        lowered = jax.jit(step).lower(
            abstract_state(config_of_step, layout), abstract_batch(counted, layout, lengths)
        )
    costs: Any = lowered.cost_analysis()
    return float(costs["flops"])


def velocity_flops(config: ModelConfig, clips: int, lengths: Lengths) -> float:
    """Return the FLOPs of one evaluation of the network, counted as `step_flops` counts them.

    Raises:
      RuntimeError: JAX has no CPU device here.
    """
    config = _without_loops(config)
    _, parameters, constants = abstract_model(config)
    channels = (config.audio_dim, config.video_dim, config.text_dim)
    features = [
        jax.ShapeDtypeStruct((clips, length, size), jnp.float32)
        for length, size in zip(lengths, channels, strict=True)
    ]
    text_len, t = (jax.ShapeDtypeStruct((clips,), dtype) for dtype in (jnp.int32, jnp.float32))

    def velocity(parameters, constants, *inputs):
        return merge_model(config, parameters, constants)(*inputs)

    with jax.default_device(jax.devices("cpu")[0]):
        lowered = jax.jit(velocity).lower(parameters, constants, *features, text_len, t)
    costs: Any = lowered.cost_analysis()
    return float(costs["flops"])


def lower_step(config: ExperimentConfig, layout: Layout, lengths: Lengths) -> jax.stages.Lowered:
    """Return the training step, lowered for clips of these lengths on the layout's mesh."""
    step_config = StepConfig.from_experiment(config)
    batch = abstract_batch(config, layout, lengths)
    return train_step.lower(abstract_state(step_config, layout), batch, config=step_config, layout=layout)


def abstract_batch(
    config: ExperimentConfig, layout: Layout, lengths: Lengths
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and shardings of a batch of records."""
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
    return with_shardings(batch, dict.fromkeys(batch, layout.batch))


def configured_lengths(config: ExperimentConfig) -> Lengths:
    """Return Ta, Tv and Tt of the clips that `data.generate_*` describes."""
    data = config.data
    seconds = data.generate_seconds
    return (
        round(seconds * data.latent_rate),
        round(seconds * config.model.video_fps),
        data.generate_text_length,
    )


def _without_loops(config: ModelConfig) -> ModelConfig:
    # XLA counts the body of a loop once, and cannot count inside of kernels.
    return dataclasses.replace(
        config, layers="unrolled", remat="none", psca_implementation="xla", attention_implementation="xla"
    )
