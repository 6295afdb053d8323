"""Detect the onsets of a sound and match them to true event times."""

import dataclasses
from collections.abc import Sequence

import mir_eval.util
import numpy as np
from scipy.ndimage import maximum_filter1d, median_filter

from flowley_jax.common.librosa_loading import load_librosa

HOP_SECONDS = 0.008
WINDOW_SECONDS = 0.032
BANDS = 40
# Hops over which the rise of a band's level is measured.
LAG = 2
# A band that is 50 dB below the loudest one counts as silence, which keeps the codec's noise out.
FLOOR = 10 ** (-50 / 20)
# Smallest strength of an onset, in nepers.
THRESHOLD = 0.9
MEDIAN_SECONDS = 0.4
MIN_GAP_SECONDS = 0.08
# Largest distance between an onset and the event that it is matched to, in seconds.
TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnsetScore:
    """Match between the detected onsets of one sound and its true event times.

    Attributes:
      matched: number of matches.
      detected: number of detected onsets.
      reference: number of true events.
      errors: (matched,) detected minus true time of each match, in seconds.
    """

    matched: int
    detected: int
    reference: int
    errors: np.ndarray

    @property
    def f1(self) -> float:
        """F1 = 2·matched / (detected + reference); 0 if there is neither an onset nor an event."""
        return 2.0 * self.matched / max(1, self.detected + self.reference)


def detect_onsets(wave: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Detect the onsets of a mono wave.

    The strength of an instant is the rise of the log level within 16 ms, averaged over mel bands, minus the
    median of that rise over 0.4 s. Levels are floored at 50 dB below the loudest band. Onsets are the local
    maxima of the strength above a threshold.

    Args:
      wave: (N,).
      sample_rate: Hz.

    Returns:
      Times in seconds and strengths in nepers, each (onsets,).
    """
    rise = _rise(np.asarray(wave, np.float32), sample_rate)
    local = median_filter(rise, size=max(3, round(MEDIAN_SECONDS / HOP_SECONDS)), mode="nearest")
    novelty = rise - local
    reach = 2 * round(MIN_GAP_SECONDS / HOP_SECONDS) + 1
    peaks = np.flatnonzero(
        (novelty >= maximum_filter1d(novelty, reach, mode="nearest")) & (novelty > THRESHOLD)
    )
    return peaks * HOP_SECONDS, novelty[peaks]


def match_onsets(detected: np.ndarray, reference: np.ndarray, tolerance: float = TOLERANCE) -> OnsetScore:
    """Match detected and true times one to one within ±`tolerance` seconds, with as many matches as possible.

    This is the matching of onset detection in MIREX, as mir_eval computes it.

    Args:
      detected: (onsets,) times in seconds.
      reference: (events,) times in seconds.
      tolerance: largest distance of a match in seconds, inclusive.
    """
    # The matching may depend on the order of the times, not only on the times.
    detected, reference = np.sort(detected), np.sort(reference)
    pairs = mir_eval.util.match_events(reference, detected, tolerance)
    errors = [detected[onset] - reference[event] for event, onset in pairs]
    return OnsetScore(
        matched=len(pairs),
        detected=len(detected),
        reference=len(reference),
        errors=np.asarray(errors, np.float64),
    )


def aggregate(scores: Sequence[OnsetScore]) -> dict[str, float | None]:
    """Pool the scores of several sounds.

    Returns:
      precision, recall and f1 over the onsets of all sounds, 0 where the denominator is 0, and
      median_abs_error_ms, the median distance of all matches in milliseconds, None without a match.
    """
    matched = sum(score.matched for score in scores)
    precision = matched / max(1, sum(score.detected for score in scores))
    recall = matched / max(1, sum(score.reference for score in scores))
    errors = np.concatenate([score.errors for score in scores]) if scores else np.zeros(0)
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2.0 * precision * recall / max(1e-12, precision + recall),
        "median_abs_error_ms": 1000.0 * float(np.median(np.abs(errors))) if len(errors) else None,
    }


def _rise(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the rise of the log level within `LAG` hops, averaged over mel bands, (hops,)."""
    librosa = load_librosa()
    hop, window = round(HOP_SECONDS * sample_rate), round(WINDOW_SECONDS * sample_rate)
    # With padding only at the start, frame n ends at the instant n·hop: its level rises as an onset enters.
    spectrum = np.abs(librosa.stft(np.pad(wave, window // 2), n_fft=window, hop_length=hop, center=False))
    level = librosa.filters.mel(sr=sample_rate, n_fft=window, n_mels=BANDS) @ spectrum
    log_level = np.log(level + FLOOR * max(1e-6, float(level.max())))
    rise = np.zeros(log_level.shape[1])
    rise[LAG:] = np.maximum(0.0, log_level[:, LAG:] - log_level[:, :-LAG]).mean(axis=0)
    return rise
