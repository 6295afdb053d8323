"""Training losses of the velocity."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowley_jax.common.ranges import NotNegative
from flowley_jax.common.typed import check_values
from flowley_jax.model.layers import safe_sqrt

LossKind = Literal["mse", "pseudo_huber"]
PSEUDO_HUBER_SCALE = 0.00054
NORM_FLOOR = 1e-8
# c of the adaptive weight, which keeps it finite for items without error.
WEIGHT_OFFSET = 1e-2


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The training loss.

    Attributes:
      kind: distance between predicted and target velocity: mean squared error or pseudo-Huber.
      direction_weight: weight λ of the direction loss, 1 − cosine similarity.
      alignment_weight: weight of the alignment loss, which makes the middle of the network predict the clean
        latent (`flowley_jax.training.alignment`); 0, as published, leaves it out.
    """

    kind: LossKind = "mse"
    direction_weight: NotNegative = 0.5
    alignment_weight: NotNegative = 0.0

    def __post_init__(self):
        check_values(self, "flow.loss")


class Losses(NamedTuple):
    """Losses of a batch, float32 scalars.

    Attributes:
      total: velocity + λ·direction; with adaptive weights, the weighted velocity loss + λ·direction.
      velocity: distance between predicted and target velocity, without weights.
      direction: mean of 1 − cosine similarity.
    """

    total: Float[Array, ""]
    velocity: Float[Array, ""]
    direction: Float[Array, ""]


@jax.named_scope("loss")
def flow_losses(
    velocity: Float[Array, "B Ta C"], target: Float[Array, "B Ta C"], config: LossConfig
) -> Losses:
    """Return the losses of a batch of velocities against their targets."""
    mean_square = jnp.mean(jnp.square(velocity - target))
    if config.kind == "pseudo_huber":
        offset = PSEUDO_HUBER_SCALE * velocity.shape[-1]
        distance = jnp.sqrt(mean_square + offset**2) - offset
    else:
        distance = mean_square
    direction = jnp.mean(1.0 - cosine_similarity(velocity, target))
    return Losses(distance + config.direction_weight * direction, distance, direction)


@jax.named_scope("loss")
def adaptive_losses(
    velocity: Float[Array, "B Ta C"], target: Float[Array, "B Ta C"], config: LossConfig, *, power: float
) -> Losses:
    """Return the losses with the mean squared error e of each item weighted by (e + c)^−p.

    The weight is a constant for the gradient, and c is 0.01 (MeanFlow, Geng et al., arXiv 2505.13447). Items
    with large errors then count less.

    Args:
      power: p.
    """
    errors = jnp.mean(jnp.square(velocity - target), axis=(1, 2))
    weights = jax.lax.stop_gradient((errors + WEIGHT_OFFSET) ** -power)
    direction = jnp.mean(1.0 - cosine_similarity(velocity, target))
    total = jnp.mean(weights * errors) + config.direction_weight * direction
    return Losses(total, jnp.mean(errors), direction)


def cosine_similarity(x: Float[Array, "... C"], y: Float[Array, "... C"]) -> Float[Array, "..."]:
    """Return the cosine along the last axis; 0 with gradient 0 where the norms' product is below 1e-8.

    The untrained network predicts exactly 0. Dividing by a clamped norm would give a gradient of 1e8 there,
    and clipping would then leave nothing of the other loss.
    """
    norms = safe_sqrt(jnp.sum(jnp.square(x), axis=-1)) * safe_sqrt(jnp.sum(jnp.square(y), axis=-1))
    defined = norms > NORM_FLOOR
    return jnp.where(defined, jnp.sum(x * y, axis=-1) / jnp.where(defined, norms, 1.0), 0.0)
