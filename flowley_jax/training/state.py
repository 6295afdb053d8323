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
    *,
    latent_mean: np.ndarray,
    latent_std: np.ndarray,
) -> tuple[nnx.GraphDef, TrainState]:
    """Initial values, all made inside one jitted function.

    Args:
      latent_mean, latent_std: (audio_dim,) statistics of the training latents.
    """

    def build():
        model = Flowley(config.model, rngs=nnx.Rngs(params=jax.random.key(config.seed)))
        model.latent_mean.set_value(jnp.asarray(latent_mean, jnp.float32))
        model.latent_std.set_value(jnp.asarray(latent_std, jnp.float32))
        return model

    def initial():
        _, parameters, constants = nnx.split(build(), nnx.Param, Constant)
        averages = tuple(jax.tree.map(jnp.copy, parameters) for _ in config.ema.sigma_rels)
        return TrainState(
            jnp.zeros((), jnp.int32), parameters, constants, optimizer.init(parameters), averages
        )

    graphdef, _ = nnx.split(nnx.eval_shape(build))
    return graphdef, jax.jit(initial)()
