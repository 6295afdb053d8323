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
# Samples that are computed at once.
_BLOCK = 2**15


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
    reach, starts, filters = _filters(step, phases, np.dtype(kernel_dtype).name)
    # The published program rounds the length to float32 before it takes the ceiling.
    length = math.ceil(np.float32(phases * wave.shape[1] / step))
    taps = filters.shape[1]
    padded = np.pad(wave.astype(np.float32), ((0, 0), (reach, reach + step + taps)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps, axis=1)
    resampled = np.empty((len(wave), length), np.float32)
    for first in range(0, length, _BLOCK):
        cycle, phase = np.divmod(np.arange(first, min(first + _BLOCK, length)), phases)
        chosen = windows[:, cycle * step + starts[phase]]
        resampled[:, first : first + _BLOCK] = np.einsum("cnt,nt->cn", chosen, filters[phase])
    return resampled


@functools.lru_cache(maxsize=32)
def _filters(step: int, phases: int, dtype: str) -> tuple[int, np.ndarray, np.ndarray]:
    """Return the zeros in front of the wave, and of each phase the first sample (phases,) and the filter.

    The published filters (phases, step + 2 · reach) are zero but for these 2 · reach + 2 taps of each phase.
    """
    number = np.dtype(dtype).type
    cutoff = _ROLLOFF * min(step, phases)
    reach = math.ceil(_CROSSINGS * step / cutoff)
    starts = step * np.arange(phases) // phases
    taps = (starts[:, None] - reach + np.arange(2 * reach + 2)).astype(dtype) / number(step)
    # In float32 in both forms.
    shifts = np.arange(0, -phases, -1).astype(np.float32) / np.float32(phases)
    time = (shifts[:, None].astype(dtype) + taps) * number(cutoff)
    time = np.clip(time, -_CROSSINGS, _CROSSINGS)
    window = np.square(np.cos(time * number(math.pi) / number(_CROSSINGS) / number(2)))
    angle = time * number(math.pi)
    sinc = np.where(angle == 0, number(1), np.sin(angle) / np.where(angle == 0, number(1), angle))
    return reach, starts, (sinc * window * number(cutoff / step)).astype(np.float32)
