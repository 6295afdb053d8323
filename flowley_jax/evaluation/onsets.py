"""Onsets of a sound, and how well they match true event times."""

import dataclasses
from collections.abc import Sequence

import librosa
import numpy as np
from scipy.ndimage import maximum_filter1d, median_filter

HOP_SECONDS = 0.008
WINDOW_SECONDS = 0.032
BANDS = 40
# Distance over which a band's level must rise, in hops.
LAG = 2
# A band below this share of the loudest one counts as silence, which keeps the codec's noise out.
FLOOR = 10 ** (-50 / 20)
THRESHOLD = 0.9
MEDIAN_SECONDS = 0.4
MIN_GAP_SECONDS = 0.08


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnsetScore:
    """Matches of one sound.

    Attributes:
      matched: number of detected onsets that have a true one.
      detected, reference: numbers of onsets.
      errors: detected minus true time of the matches, in seconds.
    """

    matched: int
    detected: int
    reference: int
    errors: np.ndarray

    @property
    def f1(self) -> float:
        """2·matched / (detected + reference); 0 without an onset on either side."""
        return 2.0 * self.matched / max(1, self.detected + self.reference)


def detect_onsets(wave: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Times in seconds and strengths of the onsets of a mono wave (N,).

    The strength is the mean rise of the log level over the bands within 16 ms, in nepers, above its own
    median over 0.4 s. Levels count down to 50 dB under the loudest band.
    """
    rise = _rise(np.asarray(wave, np.float32), sample_rate)
    local = median_filter(rise, size=max(3, round(MEDIAN_SECONDS / HOP_SECONDS)), mode="nearest")
    novelty = rise - local
    reach = 2 * round(MIN_GAP_SECONDS / HOP_SECONDS) + 1
    peaks = np.flatnonzero(
        (novelty >= maximum_filter1d(novelty, reach, mode="nearest")) & (novelty > THRESHOLD)
    )
    return peaks * HOP_SECONDS, novelty[peaks]


def match_onsets(detected: np.ndarray, reference: np.ndarray, tolerance: float = 0.1) -> OnsetScore:
    """Pairs detected and true times one to one within ±`tolerance` seconds, nearest pairs first."""
    distance = np.abs(np.asarray(detected)[:, None] - np.asarray(reference)[None, :])
    order = np.argsort(distance, axis=None, kind="stable")
    free_detected, free_reference = np.ones(len(detected), bool), np.ones(len(reference), bool)
    errors = []
    for row, column in zip(*np.unravel_index(order, distance.shape), strict=True):
        if distance[row, column] > tolerance:
            break
        if free_detected[row] and free_reference[column]:
            free_detected[row] = free_reference[column] = False
            errors.append(detected[row] - reference[column])
    return OnsetScore(
        matched=len(errors), detected=len(detected), reference=len(reference), errors=np.asarray(errors)
    )


def aggregate(scores: Sequence[OnsetScore]) -> dict[str, float | None]:
    """precision, recall, f1 over all onsets of all sounds, and median_abs_error_ms of the matches.

    A ratio without a denominator is 0; the error without a match is None.
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
    hop, window = round(HOP_SECONDS * sample_rate), round(WINDOW_SECONDS * sample_rate)
    # Padding in front lets frame n end at the instant n·hop: its level rises when the onset enters it.
    spectrum = np.abs(librosa.stft(np.pad(wave, window // 2), n_fft=window, hop_length=hop, center=False))
    level = librosa.filters.mel(sr=sample_rate, n_fft=window, n_mels=BANDS) @ spectrum
    log_level = np.log(level + FLOOR * max(1e-6, float(level.max())))
    rise = np.zeros(log_level.shape[1])
    rise[LAG:] = np.maximum(0.0, log_level[:, LAG:] - log_level[:, :-LAG]).mean(axis=0)
    return rise
