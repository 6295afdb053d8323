"""The state of a training run: data only."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from flowley_jax.config import ExperimentConfig
from flowley_jax.model import Flowley
from flowley_jax.model.flowley import Constant
from flowley_jax.training.sharding import Layout


class TrainState(NamedTuple):
    """Everything a step changes, plus the model's constants.

    Attributes:
      step: finished steps, int32.
      parameters: nnx.State of nnx.Param, float32.
      constants: nnx.State of the latent statistics and empty features.
      optimizer: optax state.
      averages: one tree like `parameters` for every EMA track.
    """

    step: jax.Array
    parameters: Any
    constants: Any
    optimizer: Any
    averages: tuple


def create_state(
    config: ExperimentConfig,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    *,
    latent_mean: np.ndarray,
    latent_std: np.ndarray,
) -> tuple[nnx.GraphDef, TrainState]:
    """Initial values, each made where `layout` wants it: no device ever holds all of them.

    Args:
      latent_mean, latent_std: (audio_dim,) statistics of the training latents.
    """

    def build():
        model = _model(config)
        model.latent_mean.set_value(jnp.asarray(latent_mean, jnp.float32))
        model.latent_std.set_value(jnp.asarray(latent_std, jnp.float32))
        return model

    graphdef, shapes = abstract_state(config, optimizer, layout)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    return graphdef, jax.jit(lambda: _initial(build(), config, optimizer), out_shardings=shardings)()


def abstract_state(
    config: ExperimentConfig, optimizer: optax.GradientTransformation, layout: Layout
) -> tuple[nnx.GraphDef, TrainState]:
    """What `create_state` makes, as shapes with their shardings; no array is made."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: _model(config)))
    shapes = jax.eval_shape(lambda: _initial(_model(config), config, optimizer))
    return graphdef, layout.placed(shapes, layout.of_state(shapes))


def _model(config: ExperimentConfig) -> Flowley:
    return Flowley(config.model, rngs=nnx.Rngs(params=jax.random.key(config.seed)))


def _initial(model: Flowley, config: ExperimentConfig, optimizer: optax.GradientTransformation) -> TrainState:
    _, parameters, constants = nnx.split(model, nnx.Param, Constant)
    averages = tuple(jax.tree.map(jnp.copy, parameters) for _ in config.ema.sigma_rels)
    return TrainState(jnp.zeros((), jnp.int32), parameters, constants, optimizer.init(parameters), averages)
