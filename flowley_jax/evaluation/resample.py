"""The resampler of torchaudio with its default values: a sinc, windowed by Hann's function.

Published features were made with it. Its two forms differ by rounding: the module builds its filters in
float64, and the function in the type of the wave, float32.
"""

import functools
import math

import numpy as np
from numpy.typing import DTypeLike

from flowley_jax.errors import FlowleyError

# Zero crossings of the sinc on each side, and the cutoff as a share of the lower Nyquist frequency.
_CROSSINGS, _ROLLOFF = 6, 0.99


def resample(
    wave: np.ndarray, before: int, after: int, *, kernel_dtype: DTypeLike = np.float64
) -> np.ndarray:
    """Return a wave at another sample rate; at the same rate, it is returned as it is.

    Args:
      wave: (channels, N) float32.
      before, after: sample rates in Hz.
      kernel_dtype: type in which the filters are built: float64 as by `torchaudio.transforms.Resample`, or
        float32 as by `torchaudio.functional.resample`.

    Returns:
      float32 (channels, ⌈N · after / before⌉).

    Raises:
      FlowleyError: a sample rate is not positive, or the wave does not have two axes.
    """
    if min(before, after) <= 0:
        raise FlowleyError(f"sample rates {before} and {after} must be positive")
    if wave.ndim != 2:
        raise FlowleyError(f"wave {wave.shape} must be (channels, samples)")
    if before == after:
        return wave
    divisor = math.gcd(before, after)
    step, phases = before // divisor, after // divisor
    filters = _filters(step, phases, np.dtype(kernel_dtype).name)
    reach = (filters.shape[1] - step) // 2
    padded = np.pad(wave.astype(np.float32), ((0, 0), (reach, reach + step)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, filters.shape[1], axis=1)[:, ::step]
    # A matrix product of overlapping windows would not be one of BLAS.
    resampled = np.ascontiguousarray(windows) @ filters.T
    # The published program rounds the length to float32 before it takes the ceiling.
    length = math.ceil(np.float32(phases * wave.shape[1] / step))
    return resampled.reshape(len(wave), -1)[:, :length]


@functools.lru_cache(maxsize=32)
def _filters(step: int, phases: int, dtype: str) -> np.ndarray:
    """Return the filter of each phase, float32 (phases, taps)."""
    number = np.dtype(dtype).type
    cutoff = _ROLLOFF * min(step, phases)
    reach = math.ceil(_CROSSINGS * step / cutoff)
    taps = np.arange(-reach, reach + step, dtype=dtype) / number(step)
    # In float32 in both forms.
    shifts = np.arange(0, -phases, -1).astype(np.float32) / np.float32(phases)
    time = (shifts[:, None].astype(dtype) + taps[None]) * number(cutoff)
    time = np.clip(time, -_CROSSINGS, _CROSSINGS)
    window = np.square(np.cos(time * number(math.pi) / number(_CROSSINGS) / number(2)))
    angle = time * number(math.pi)
    sinc = np.where(angle == 0, number(1), np.sin(angle) / np.where(angle == 0, number(1), angle))
    return (sinc * window * number(cutoff / step)).astype(np.float32)
