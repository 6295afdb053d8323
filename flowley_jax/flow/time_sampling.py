"""Distributions of the training time t in [0, 1]."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowley_jax.common.ranges import NotNegative
from flowley_jax.common.typed import check_values

TimeKind = Literal["cosmap", "logit_normal", "uniform"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeConfig:
    """Distribution of the training time.

    Attributes:
      kind: distribution of t; "cosmap" is the paper's tangent schedule.
      mean: m of the logit-normal distribution, sigmoid(m + s·n) for a standard normal n.
      std: s of the logit-normal distribution.
    """

    kind: TimeKind = "cosmap"
    mean: float = 0.0
    std: NotNegative = 0.1

    def __post_init__(self):
        check_values(self, "flow.time")


def sample_times(key: jax.Array, batch_size: int, config: TimeConfig) -> Float[Array, " B"]:
    """Sample a time for each item of a batch."""
    if config.kind == "logit_normal":
        return logit_normal(jax.random.normal(key, (batch_size,)), mean=config.mean, std=config.std)
    uniform = jax.random.uniform(key, (batch_size,))
    return cosmap(uniform) if config.kind == "cosmap" else uniform


def cosmap(u: Float[Array, " B"]) -> Float[Array, " B"]:
    """Return t = 1 − 1/(tan(πu/2) + 1) for u ~ U(0, 1)."""
    return 1.0 - 1.0 / (jnp.tan(0.5 * jnp.pi * u) + 1.0)


def logit_normal(n: Float[Array, " B"], *, mean: float, std: float) -> Float[Array, " B"]:
    """Return t = sigmoid(m + s·n) for n ~ N(0, 1)."""
    return jax.nn.sigmoid(mean + std * n)
