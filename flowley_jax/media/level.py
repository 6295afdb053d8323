"""The level of a sound: its true peak, a limiter that bounds it, and its loudness (ITU-R BS.1770-4).

The true peak is the highest magnitude of a wave, between its samples too. The wave x is interpolated at L
points per sample, L = min(4, ⌈192 kHz / rate⌉):

    y(n + p/L) = Σₖ x(k) h(n + p/L − k),    h(t) = sinc(t) · Kaiser window.

h is longer than the standard's example, and so exact up to higher frequencies.

The limiter multiplies the wave by a gain. With e(n) the highest |y| from sample n to the next, and c the
ceiling,

    r(n) = c / e(n) where e exceeds c, else 1,    gain = Hann window ∗ min r,

with the minimum and the window over as many samples on each side, so that gain(n) ≤ r(n). Everything is
local and computed in blocks, so memory does not grow with the length of the sound.

Waves are (N,) or (N, C), with one gain for all channels.
"""

import functools
import math
from collections.abc import Iterable, Iterator

import numpy as np
import pyloudnorm
import scipy.ndimage
import scipy.signal

from flowley_jax.errors import FlowleyError

# Highest true peak of written sounds, in dB relative to full scale (EBU R 128).
CEILING_DB = -1.0
_OVERSAMPLED_RATE, _MAX_OVERSAMPLING = 192_000, 4
# Samples on each side that an interpolated value depends on, and the shape of their window.
_TAPS, _KAISER_BETA = 64, 6.0
_BLOCK = 2**16
# The gain is constant between the half-waves of tones from 50 Hz up, and so does not distort them.
_HOLD_SECONDS = 0.005
# Limited parts stay this factor below the ceiling: a gain that changes moves the peaks a little, and other
# meters interpolate at other points.
_MARGIN = 10 ** (-0.3 / 20)
# Gating blocks of BS.1770 last 0.4 s and begin every 0.1 s; quieter ones than -70 LUFS count as silence.
_GATE_SECONDS, _STEP_SECONDS = 0.4, 0.1
_SILENT_LUFS, _RELATIVE_GATE = -70.0, -10.0
# Gating blocks measured at a time, and those before them in which the filters settle.
_GATES, _SETTLING_GATES = 600, 30


def true_peak(wave: np.ndarray, rate: int) -> float:
    """Return the true peak of a wave, 1 for full scale.

    Args:
      wave: samples (N,) or (N, C).
      rate: Hz.

    Raises:
      FlowleyError: a sample is not finite.
    """
    blocks = (wave[start : start + _BLOCK] for start in range(0, len(wave), _BLOCK))
    return true_peak_of_blocks(blocks, rate)


def true_peak_of_blocks(blocks: Iterable[np.ndarray], rate: int) -> float:
    """Return the true peak of a wave that arrives in blocks (n,) or (n, C) of any lengths."""
    peak, held = 0.0, None
    for block in blocks:
        held = np.concatenate([_silence(2 * _TAPS, block) if held is None else held, block])
        peak = max(peak, float(_envelope(held, rate).max(initial=0.0)))
        held = held[-2 * _TAPS :]
    if held is None:
        return peak
    end = np.concatenate([held, _silence(_TAPS, held)])
    return max(peak, float(_envelope(end, rate).max(initial=0.0)))


def limit_true_peak(wave: np.ndarray, rate: int, *, ceiling_db: float = CEILING_DB) -> np.ndarray:
    """Return a wave with its peaks turned down to a ceiling; see the module.

    Samples that are 10 ms or more from every excess keep their values bit for bit.

    Args:
      wave: samples (N,) or (N, C).
      rate: Hz.
      ceiling_db: highest true peak of the result, in dB relative to full scale.

    Raises:
      FlowleyError: a sample is not finite.
    """
    return np.concatenate(list(limited_blocks(wave, rate, ceiling_db=ceiling_db)))


def limited_blocks(wave: np.ndarray, rate: int, *, ceiling_db: float = CEILING_DB) -> Iterator[np.ndarray]:
    """Yield the result of `limit_true_peak` in blocks of 65,536 samples, the last one shorter.

    An empty wave gives one empty block.
    """
    ceiling = 10 ** (ceiling_db / 20)
    hold = max(1, round(_HOLD_SECONDS * rate))
    reach = 2 * hold + _TAPS
    for start in range(0, max(1, len(wave)), _BLOCK):
        block = wave[start : start + _BLOCK]
        # Each sample is looked at with its surroundings; before and after the wave, they are silent.
        part = wave[max(0, start - reach) : start + len(block) + reach]
        before = _silence(max(0, reach - start), wave)
        after = _silence(max(0, start + len(block) + reach - len(wave)), wave)
        envelope = _envelope(np.concatenate([before, part, after]), rate)
        if (envelope > ceiling).any():
            gain = _gain(envelope, ceiling, hold)
            block = block * gain.reshape(-1, *[1] * (block.ndim - 1)).astype(block.dtype)
        yield block


def to_loudness(wave: np.ndarray, rate: int, lufs: float) -> np.ndarray:
    """Return a wave at an integrated loudness, limited to the ceiling of written sounds.

    The limiter makes sounds with high peaks quieter than asked for. A sound shorter than 0.4 s is measured as
    if silence followed; silence, below -70 LUFS, is returned as it is.

    Args:
      wave: float samples (N,) or (N, C), with at most five channels.
      rate: Hz.
      lufs: loudness in LUFS.

    Raises:
      FlowleyError: a sample is not finite.
    """
    measured = integrated_loudness(wave, rate)
    if measured == -math.inf:
        return wave
    return limit_true_peak(wave * 10 ** ((lufs - measured) / 20), rate)


def integrated_loudness(wave: np.ndarray, rate: int) -> float:
    """Return the integrated loudness of a wave in LUFS, -inf for silence; see `to_loudness`."""
    least = math.ceil(_GATE_SECONDS * rate)
    if len(wave) < least:
        wave = np.concatenate([wave, _silence(least - len(wave), wave)])
    loudness = np.concatenate(list(_gate_loudness(wave, rate)))
    power = 10 ** (loudness / 10)
    audible = loudness >= _SILENT_LUFS
    if not audible.any():
        return -math.inf
    threshold = 10 * math.log10(power[audible].mean()) + _RELATIVE_GATE
    return 10 * math.log10(power[audible & (loudness > threshold)].mean())


def _gate_loudness(wave: np.ndarray, rate: int) -> Iterator[np.ndarray]:
    """Yield the loudness of all gating blocks, some at a time: pyloudnorm holds its input several times."""
    meter = pyloudnorm.Meter(rate, block_size=_GATE_SECONDS, overlap=1 - _STEP_SECONDS / _GATE_SECONDS)
    # As in pyloudnorm, the last gating block may lack up to half a step.
    gates = round((len(wave) / rate - _GATE_SECONDS) / _STEP_SECONDS) + 1
    for first in range(0, gates, _GATES):
        settling = min(first, _SETTLING_GATES)
        last = min(first + _GATES, gates) - 1
        start = round((first - settling) * _STEP_SECONDS * rate)
        end = round((last * _STEP_SECONDS + _GATE_SECONDS) * rate)
        meter.integrated_loudness(wave[start:end])
        yield np.asarray(meter.blockwise_loudness)[settling:]


def _gain(envelope: np.ndarray, ceiling: float, hold: int) -> np.ndarray:
    """Return the gain of every sample but the first and last 2·hold."""
    exceeds = envelope > ceiling
    wanted = np.divide(_MARGIN * ceiling, envelope, out=np.ones_like(envelope), where=exceeds)
    lowest = scipy.ndimage.minimum_filter1d(wanted, 2 * hold + 1)[hold:-hold]
    kernel = np.hanning(2 * hold + 3)[1:-1]
    smooth = scipy.signal.oaconvolve(lowest, kernel / kernel.sum(), mode="valid")
    touched = scipy.ndimage.minimum_filter1d(lowest, 2 * hold + 1)[hold:-hold] < 1
    # A mean of ones is not exactly 1, and may be above it.
    return np.where(touched, np.minimum(smooth, 1.0), 1.0)


def _envelope(wave: np.ndarray, rate: int) -> np.ndarray:
    """Return the highest |y| from each sample to the next, over all channels.

    Args:
      wave: samples (N,) or (N, C), with N at least 2·_TAPS.
      rate: Hz.

    Returns:
      Envelope (N − 2·_TAPS,), without the first and last samples: their interpolation needs others.

    Raises:
      FlowleyError: a sample is not finite.
    """
    if not np.isfinite(wave).all():
        raise FlowleyError("the sound has values that are not finite")
    samples = wave.reshape(len(wave), math.prod(wave.shape[1:]))
    highest = np.abs(samples[_TAPS:-_TAPS])
    for taps in _phases(min(_MAX_OVERSAMPLING, math.ceil(_OVERSAMPLED_RATE / rate))):
        kernel = taps[:, None].astype(wave.dtype)
        points = scipy.signal.oaconvolve(samples, kernel, mode="valid", axes=0)[1:]
        highest = np.maximum(highest, np.abs(points))
    return highest.max(axis=1)


@functools.cache
def _phases(factor: int) -> np.ndarray:
    """Return h(p/factor − k) for p from 1 to factor − 1 and the samples k from _TAPS down to 1 − _TAPS."""
    times = np.arange(1, factor)[:, None] / factor - np.arange(_TAPS, -_TAPS, -1)
    window = np.i0(_KAISER_BETA * np.sqrt(1 - (times / _TAPS) ** 2)) / np.i0(_KAISER_BETA)
    return np.sinc(times) * window


def _silence(length: int, like: np.ndarray) -> np.ndarray:
    return np.zeros((length, *like.shape[1:]), like.dtype)
