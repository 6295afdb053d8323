"""How training times t in [0, 1] are drawn."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowley_jax.errors import FlowleyError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeConfig:
    """Distribution of t: "cosmap" (the paper's tangent schedule), "logit_normal" or "uniform".

    Attributes:
      mean, std: m and s of the logit-normal distribution.
    """

    kind: Literal["cosmap", "logit_normal", "uniform"] = "cosmap"
    mean: float = 0.0
    std: float = 0.1

    def __post_init__(self):
        if self.kind not in ("cosmap", "logit_normal", "uniform"):
            raise FlowleyError(f"flow.time.kind={self.kind!r} must be cosmap, logit_normal or uniform")


def sample_times(key: jax.Array, batch_size: int, config: TimeConfig) -> Float[Array, " B"]:
    """Draws (B,) times."""
    if config.kind == "logit_normal":
        return logit_normal(jax.random.normal(key, (batch_size,)), mean=config.mean, std=config.std)
    uniform = jax.random.uniform(key, (batch_size,))
    return cosmap(uniform) if config.kind == "cosmap" else uniform


def cosmap(u: Float[Array, " B"]) -> Float[Array, " B"]:
    """t = 1 − 1/(tan(πu/2) + 1) for u ~ U(0, 1)."""
    return 1.0 - 1.0 / (jnp.tan(0.5 * jnp.pi * u) + 1.0)


def logit_normal(n: Float[Array, " B"], *, mean: float, std: float) -> Float[Array, " B"]:
    """t = sigmoid(m + s·n) for n ~ N(0, 1)."""
    return jax.nn.sigmoid(mean + std * n)
