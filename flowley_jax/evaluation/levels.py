"""The level of a set of sounds: loudness (ITU-R BS.1770), peaks, clipping and silence."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from flowley_jax.errors import FlowleyError
from flowley_jax.media.level import integrated_loudness, true_peak

# A wave that two samples in a row have at full scale is clipped.
_FULL_SCALE = 0.9995
# Blocks of a sound below this RMS level, in dB relative to full scale, are silent.
_SILENT_DB, _BLOCK_SECONDS = -60.0, 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipLevel:
    """Levels of one sound.

    Attributes:
      lufs: integrated loudness; -inf for silence.
      true_peak: 1 for full scale.
      is_clipped: whether two samples in a row are at full scale.
      silent_share: share of its time that is silent.
    """

    lufs: float
    true_peak: float
    is_clipped: bool
    silent_share: float

    @classmethod
    def of_array(cls, array: np.ndarray) -> "ClipLevel":
        """Return the levels of an array (4,) that `as_array` returned."""
        lufs, peak, is_clipped, silent_share = map(float, array)
        return cls(lufs=lufs, true_peak=peak, is_clipped=bool(is_clipped), silent_share=silent_share)

    def as_array(self) -> np.ndarray:
        """Return the levels as an array, (4,) float64."""
        return np.array([self.lufs, self.true_peak, self.is_clipped, self.silent_share], np.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
    """Levels of a set of sounds.

    Attributes:
      lufs: mean loudness of the sounds that have one; None if none has.
      lufs_deviation: standard deviation of the same; None for fewer than two.
      true_peak_db: highest true peak of all in dB relative to full scale; None for silence.
      clipped: share of the sounds that are clipped.
      silent: share of the sounds that have no loudness.
      silent_share: mean share of the time that is silent.
    """

    lufs: float | None
    lufs_deviation: float | None
    true_peak_db: float | None
    clipped: float
    silent: float
    silent_share: float


def clip_level(wave: np.ndarray, sample_rate: int) -> ClipLevel:
    """Return the levels of a sound (N,).

    Raises:
      FlowleyError: a sample is not finite.
    """
    full = np.abs(wave) >= _FULL_SCALE
    return ClipLevel(
        lufs=integrated_loudness(wave, sample_rate),
        true_peak=true_peak(wave, sample_rate),
        is_clipped=bool((full[1:] & full[:-1]).any()),
        silent_share=_silent_share(wave, sample_rate),
    )


def levels(waves: Mapping[str, np.ndarray], sample_rate: int) -> Levels:
    """Return the levels of sounds (N,) by clip id.

    Raises:
      FlowleyError: there is no sound, or a sample is not finite; the message names the clip.
    """
    if not waves:
        raise FlowleyError("there are no sounds whose level could be measured")
    clips = []
    for name, wave in waves.items():
        try:
            clips.append(clip_level(wave, sample_rate))
        except FlowleyError as error:
            raise FlowleyError(f"{name}: {error}") from error
    loudness = np.array([clip.lufs for clip in clips if clip.lufs > -math.inf])
    peak = max(clip.true_peak for clip in clips)
    return Levels(
        lufs=float(loudness.mean()) if len(loudness) else None,
        lufs_deviation=float(loudness.std(ddof=1)) if len(loudness) > 1 else None,
        true_peak_db=20.0 * math.log10(peak) if peak > 0.0 else None,
        clipped=float(np.mean([clip.is_clipped for clip in clips])),
        silent=1.0 - len(loudness) / len(clips),
        silent_share=float(np.mean([clip.silent_share for clip in clips])),
    )


def _silent_share(wave: np.ndarray, sample_rate: int) -> float:
    size = max(1, round(_BLOCK_SECONDS * sample_rate))
    starts = np.arange(0, max(1, len(wave)), size)
    powers = np.add.reduceat(np.square(wave, dtype=np.float64), starts) if len(wave) else np.zeros(1)
    lengths = np.minimum(size, max(1, len(wave)) - starts)
    silent = powers / lengths < 10.0 ** (_SILENT_DB / 10.0)
    return float(lengths[silent].sum() / lengths.sum())
