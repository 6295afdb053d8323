"""Training losses of the velocity (spec/model.md, Rectified flow)."""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowley_jax.errors import FlowleyError
from flowley_jax.model.layers import safe_sqrt

PSEUDO_HUBER_SCALE = 0.00054
NORM_FLOOR = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which distance of velocities, and the weight λ of the direction loss."""

    kind: Literal["mse", "pseudo_huber"] = "mse"
    direction_weight: float = 0.5

    def __post_init__(self):
        if self.kind not in ("mse", "pseudo_huber"):
            raise FlowleyError(f"flow.loss.kind={self.kind!r} must be mse or pseudo_huber")


class Losses(NamedTuple):
    """total = velocity + λ·direction; scalars, float32."""

    total: Float[Array, ""]
    velocity: Float[Array, ""]
    direction: Float[Array, ""]


def flow_losses(
    velocity: Float[Array, "B Ta C"], target: Float[Array, "B Ta C"], config: LossConfig
) -> Losses:
    """Loss of a batch of velocities against their targets."""
    mean_square = jnp.mean(jnp.square(velocity - target))
    if config.kind == "pseudo_huber":
        offset = PSEUDO_HUBER_SCALE * velocity.shape[-1]
        main = jnp.sqrt(mean_square + offset**2) - offset
    else:
        main = mean_square
    direction = jnp.mean(1.0 - cosine_similarity(velocity, target))
    return Losses(main + config.direction_weight * direction, main, direction)


def cosine_similarity(x: Float[Array, "... C"], y: Float[Array, "... C"]) -> Float[Array, "..."]:
    """Cosine along the last axis; 0 with gradient 0 where either vector has norm below 1e-8.

    The untrained network answers exactly 0, where dividing by a clamped norm would give a gradient of
    1e8 that leaves nothing of the other loss after clipping.
    """
    norms = safe_sqrt(jnp.sum(jnp.square(x), axis=-1)) * safe_sqrt(jnp.sum(jnp.square(y), axis=-1))
    defined = norms > NORM_FLOOR
    return jnp.where(defined, jnp.sum(x * y, axis=-1) / jnp.where(defined, norms, 1.0), 0.0)
