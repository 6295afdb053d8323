"""Rotary position embedding over interleaved channel pairs."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

THETA = 10000.0


def rotary_angles(length: int, head_width: int, *, position_scale: float = 1.0) -> Float[Array, "T pairs"]:
    """Angles position·(s·θ^(−2m/d)) in radians.

    The order of the float32 operations is the published one; scaling the position first differs by 1e-5
    at 250 positions. Positions are not a constant of the program: the compiler would unfold it, for
    minutes where there are thousands.

    Args:
      position_scale: s; Ta/Tv for video, so that both clocks agree.
    """
    exponents = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
    frequencies = np.float32(1.0) / np.float32(THETA) ** exponents * np.float32(position_scale)
    positions = jax.lax.iota(jnp.float32, length)
    return positions[:, None] * frequencies[None, :]


def rotate(x: Float[Array, "B T H d"], angles: Float[Array, "T pairs"]) -> Float[Array, "B T H d"]:
    """Turns each pair of channels (2m, 2m+1) by its angle, in float32."""
    cos = jnp.cos(angles)[None, :, None, :]
    sin = jnp.sin(angles)[None, :, None, :]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
