"""The straight path from noise x₀ (t = 0) to data x₁ (t = 1): x_t = t·x₁ + (1 − t)·x₀, u = x₁ − x₀."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def interpolate(
    noise: Float[Array, "B Ta C"], data: Float[Array, "B Ta C"], t: Float[Array, " B"]
) -> Float[Array, "B Ta C"]:
    """Return x_t of every item."""
    t = t[:, None, None]
    return t * data + (1.0 - t) * noise


def target_velocity(noise: Float[Array, "B Ta C"], data: Float[Array, "B Ta C"]) -> Float[Array, "B Ta C"]:
    """Return u = x₁ − x₀, which is constant along the path."""
    return data - noise


def data_at_end(
    x: Float[Array, "B Ta C"], velocity: Float[Array, "B Ta C"], t: Float[Array, " B"]
) -> Float[Array, "B Ta C"]:
    """Return x₁ = x_t + (1 − t)·u."""
    return x + (1.0 - t)[:, None, None] * velocity


def draw_latent(
    key: jax.Array, mean: Float[Array, "B Ta C"], std: Float[Array, "B Ta C"]
) -> Float[Array, "B Ta C"]:
    """Draw a latent from the codec's posterior: mean + std·n with n ~ N(0, I)."""
    return mean + std * jax.random.normal(key, mean.shape, jnp.float32)
