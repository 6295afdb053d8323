"""Compare onsets as published for Greatest Hits, and by average precision.

The protocol is that of CondFoleyGen (Du et al. 2023, arXiv 2304.08490), which compares the onsets of a
generated sound with those of the real one.
"""

import dataclasses

import numpy as np
import soxr

from flowley_jax.audio.onsets import TOLERANCE
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.av_align import SAMPLE_RATE, audio_peaks

_PROMINENCE = 0.3
# An onset is as loud as the loudest sample this near to it, and rules out less certain onsets this near; s.
_NEIGHBOURHOOD = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Onsets:
    """Detected onsets of one sound.

    Attributes:
      times: (onsets,) seconds in ascending order.
      confidences: (onsets,) how sure each of them is; only their order counts.
      levels: (onsets,) loudness; an event is paired with the loudest free onset.
    """

    times: np.ndarray
    confidences: np.ndarray
    levels: np.ndarray

    @classmethod
    def of_columns(cls, columns: np.ndarray) -> "Onsets":
        """Return the onsets of an array (onsets, 3) of times, confidences and levels."""
        return cls(times=columns[:, 0], confidences=columns[:, 1], levels=columns[:, 2])

    def columns(self) -> np.ndarray:
        """Return times, confidences and levels as the columns of an array, (onsets, 3)."""
        return np.stack([self.times, self.confidences, self.levels], axis=1).astype(np.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipOnsets:
    """The detected onsets of one sound against reference times.

    Attributes:
      has_same_count: whether there are as many onsets as reference times.
      references: number of reference times.
      is_hit: (onsets,) whether an onset is paired with a reference time.
      confidences: (onsets,) of the same onsets.
    """

    has_same_count: bool
    references: int
    is_hit: np.ndarray
    confidences: np.ndarray

    @property
    def published_average_precision(self) -> float:
        """Average precision as CondFoleyGen computes it.

        Reference times without an onset count as found with confidence 0. So a sound without onsets has 1.
        """
        missed = self.references - int(self.is_hit.sum())
        return average_precision(
            np.append(self.confidences, np.zeros(missed)),
            np.append(self.is_hit, np.ones(missed, bool)),
            self.references,
        )


def published_onsets(wave: np.ndarray, sample_rate: int) -> Onsets:
    """Return the onsets of a mono wave (N,) as CondFoleyGen detects them, by librosa.

    They are as sure as they are loud: confidences and levels are shares of the wave's peak.
    """
    if sample_rate != SAMPLE_RATE:
        wave = soxr.resample(wave, sample_rate, SAMPLE_RATE)
    times = audio_peaks(wave, SAMPLE_RATE, prominence=_PROMINENCE)
    loudness = np.abs(wave) / max(1e-12, float(np.abs(wave).max(initial=0.0)))
    samples, reach = np.rint(times * SAMPLE_RATE).astype(int), int(_NEIGHBOURHOOD * SAMPLE_RATE)
    nearby = [loudness[max(0, sample - reach) : sample + reach] for sample in samples]
    return Onsets(
        times=times,
        confidences=np.array([float(part.max()) for part in nearby]),
        levels=loudness[samples],
    )


def compare_clip(onsets: Onsets, references: np.ndarray, *, tolerance: float = TOLERANCE) -> ClipOnsets:
    """Pair onsets and reference times one to one; earlier reference times choose first.

    Less certain onsets within 0.05 s of a more certain one count only for `has_same_count`.

    Args:
      onsets: those of the sound.
      references: (times,) in seconds.
      tolerance: an onset and a reference time that are paired are nearer than this, in seconds.

    Raises:
      FlowleyError: there is no reference time.
    """
    if not len(references):
        raise FlowleyError("onsets are compared with at least one reference time, and there is none")
    kept = _without_neighbours(onsets)
    is_hit = np.zeros(len(kept.times), bool)
    for time in np.sort(references):
        free = np.flatnonzero(~is_hit & (np.abs(kept.times - time) < tolerance))
        if len(free):
            is_hit[free[kept.levels[free].argmax()]] = True
    return ClipOnsets(
        has_same_count=len(onsets.times) == len(references),
        references=len(references),
        is_hit=is_hit,
        confidences=kept.confidences,
    )


def _without_neighbours(onsets: Onsets) -> Onsets:
    """Return the onsets that are not near a more certain one."""
    is_kept = np.zeros(len(onsets.times), bool)
    for index in np.argsort(-onsets.confidences, kind="stable"):
        distances = np.abs(onsets.times[is_kept] - onsets.times[index])
        is_kept[index] = not (distances < _NEIGHBOURHOOD).any()
    return Onsets(
        times=onsets.times[is_kept],
        confidences=onsets.confidences[is_kept],
        levels=onsets.levels[is_kept],
    )


def average_precision(confidences: np.ndarray, is_hit: np.ndarray, positives: int) -> float:
    """Return Σ precision × the recall that is gained, over thresholds of confidence from the highest down.

    Args:
      confidences: (N,) of what was detected; equal ones pass a threshold together.
      is_hit: (N,) whether it is right.
      positives: number of events.

    Raises:
      FlowleyError: there is nothing to detect.
    """
    if positives < 1:
        raise FlowleyError("average precision needs something to detect, and there is nothing")
    # Number of all, and of right ones, at each confidence in ascending order.
    levels, level = np.unique(confidences, return_inverse=True)
    counts = np.bincount(level, minlength=len(levels))[::-1]
    hits = np.bincount(level, weights=is_hit, minlength=len(levels))[::-1]
    precision = np.cumsum(hits) / np.cumsum(counts)
    return float((precision * hits).sum() / positives)
