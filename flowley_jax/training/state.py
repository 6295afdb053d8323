"""The state of a training run: data only."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from flowley_jax.config import ExperimentConfig
from flowley_jax.model import Flowley
from flowley_jax.model.flowley import Constant
from flowley_jax.training import lora
from flowley_jax.training.sharding import Layout


class TrainState(NamedTuple):
    """Everything a step changes, plus the model's constants.

    Attributes:
      step: finished steps, int32.
      parameters: what is trained, float32: the nnx.State of nnx.Param, or LoRA's adapters.
      frozen: the nnx.State of nnx.Param under LoRA; empty without. Checkpoints leave it out.
      constants: nnx.State of the latent statistics and empty features.
      optimizer: optax state.
      averages: one tree like `parameters` for every EMA track.
    """

    step: jax.Array
    parameters: Any
    frozen: Any
    constants: Any
    optimizer: Any
    averages: tuple

    @property
    def as_stored(self) -> "TrainState":
        """Without what never changes."""
        return self._replace(frozen={})


def create_state(
    config: ExperimentConfig,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    *,
    latent_mean: np.ndarray,
    latent_std: np.ndarray,
) -> tuple[nnx.GraphDef, TrainState]:
    """Random values, each made where `layout` wants it: no device ever holds all of them.

    Args:
      latent_mean, latent_std: (audio_dim,) statistics of the training latents.
    """
    build = _beginning(config, optimizer)
    graphdef, shapes = _shapes_of(build, config, layout)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    statistics = (np.asarray(value, np.float32) for value in (latent_mean, latent_std))
    return jax.jit(build, out_shardings=(graphdef, shardings))(*statistics)


def state_from(
    parameters: Any,
    constants: Any,
    config: ExperimentConfig,
    optimizer: optax.GradientTransformation,
    layout: Layout,
) -> tuple[nnx.GraphDef, TrainState]:
    """The state of a run that begins with given weights, which every process has in its memory."""
    graphdef, shapes = abstract_state(config, optimizer, layout)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    placed = layout.place_weights((parameters, constants))

    def build(parameters, constants):
        return _initial(parameters, constants, config, optimizer)

    return graphdef, jax.jit(build, out_shardings=shardings)(*placed)


def abstract_state(
    config: ExperimentConfig, optimizer: optax.GradientTransformation, layout: Layout
) -> tuple[nnx.GraphDef, TrainState]:
    """What a run's state consists of, as shapes with their shardings; no array is made."""
    return _shapes_of(_beginning(config, optimizer), config, layout)


def weights_of(state: TrainState, config: ExperimentConfig, trained: Any = None) -> Any:
    """The network's weights, with LoRA's adapters added.

    Args:
      trained: in place of the state's own, such as averages.
    """
    trained = state.parameters if trained is None else trained
    if not config.lora.rank:
        return trained
    return lora.merged(state.frozen, trained, strength=config.lora.strength)


def _beginning(config: ExperimentConfig, optimizer: optax.GradientTransformation) -> Callable:
    """What makes structure and random values from the statistics of the latents."""

    def build(latent_mean: jax.Array, latent_std: jax.Array) -> tuple[nnx.GraphDef, TrainState]:
        model = Flowley(config.model, rngs=nnx.Rngs(params=jax.random.key(config.seed)))
        model.latent_mean.set_value(latent_mean)
        model.latent_std.set_value(latent_std)
        _, parameters, constants = nnx.split(model, nnx.Param, Constant)
        return nnx.graphdef(model), _initial(parameters, constants, config, optimizer)

    return build


def _shapes_of(build: Callable, config: ExperimentConfig, layout: Layout) -> tuple[nnx.GraphDef, TrainState]:
    statistics = jax.ShapeDtypeStruct((config.model.audio_dim,), jnp.float32)
    # JAX remembers what it has traced, so that the network is built once for its shapes and its values.
    graphdef, shapes = jax.eval_shape(build, statistics, statistics)
    return graphdef, layout.placed(shapes, layout.of_state(shapes))


def _initial(parameters, constants, config: ExperimentConfig, optimizer) -> TrainState:
    frozen = {}
    if config.lora.rank:
        frozen = parameters
        parameters = lora.new_adapters(frozen, config.lora, jax.random.key(config.seed))
    averages = tuple(jax.tree.map(jnp.copy, parameters) for _ in config.ema.sigma_rels)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        parameters=parameters,
        frozen=frozen,
        constants=constants,
        optimizer=optimizer.init(parameters),
        averages=averages,
    )
