"""Power spectra and mel frames of the audio networks' front ends."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowley_jax.model.layers import per_channel

_LEAST_POWER = 1e-10


def mel_power(waves: Float[Array, "B N"], window: np.ndarray, hop: int, mel: np.ndarray) -> Array:
    """Return the power in mel bins of waves that are reflected at both ends, (B, 1 + N // hop, bins) float32.

    Args:
      waves: samples, more than half a window.
      window: factors of a frame's samples, of even length W.
      hop: samples from frame to frame.
      mel: weights (W / 2 + 1, bins) of the frequencies in each bin.
    """
    length = len(window)
    padded = jnp.pad(waves.astype(jnp.float32), ((0, 0), (length // 2,) * 2), mode="reflect")
    starts = hop * jnp.arange(1 + waves.shape[1] // hop)
    frames = padded[:, starts[:, None] + jnp.arange(length)[None]]
    frames *= per_channel(jnp.asarray(window, jnp.float32), frames)
    power = jnp.square(jnp.abs(jnp.fft.rfft(frames)))
    # Accelerators would round the factors to bfloat16.
    return jnp.matmul(power, jnp.asarray(mel, jnp.float32), precision=jax.lax.Precision.HIGHEST)


def decibels(power: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return 10·log10 of power, at least −100."""
    return 10.0 * jnp.log10(jnp.maximum(power, _LEAST_POWER))


def periodic_hann(length: int) -> np.ndarray:
    """Return Hann's window ½ − ½ cos(2πi / length)."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(length) / length)
