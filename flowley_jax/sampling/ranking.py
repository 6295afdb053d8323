"""Which of several sounds of one clip to keep: the one that agrees best with the others.

A mistake, such as a strike without an impact in the picture, is rarely made twice, so the sound that shares
most onsets with the other candidates is probably right. This needs no network and no picture.
"""

import numpy as np
from scipy.ndimage import gaussian_filter1d

from flowley_jax.audio.onsets import detect_onsets, match_onsets
from flowley_jax.common.librosa_loading import load_librosa

# Two sounds agree with each other equally.
FEWEST_CANDIDATES = 3
# Hop of the envelopes, and standard deviation of the filter that smooths them, in seconds.
_HOP_SECONDS = 0.01
_SMOOTHING_SECONDS = 0.03


def best_first(waves: np.ndarray, sample_rate: int) -> list[tuple[int, float]]:
    """Return the indices of sounds, those that agree best with the others first, with their scores.

    The score of a sound is the mean F1 of its onsets against those of each other sound, where onsets within
    0.1 s match and two sounds without onsets agree. Sounds of equal score are sorted by the correlation of
    their onset envelopes with the others'.

    Args:
      waves: (n, N) sounds of one clip; with fewer than three, all scores are equal.
      sample_rate: Hz.

    Returns:
      n pairs of an index and a score in [0, 1].
    """
    if len(waves) == 1:
        return [(0, 1.0)]
    onsets = [detect_onsets(wave, sample_rate)[0] for wave in waves]
    agreement = np.array([[_f1(mine, others) for others in onsets] for mine in onsets])
    scores = _mean_over_others(agreement)
    ties = _mean_over_others(_correlations(waves, sample_rate))
    order = sorted(range(len(waves)), key=lambda index: (scores[index], ties[index]), reverse=True)
    return [(index, float(scores[index])) for index in order]


def _f1(first: np.ndarray, second: np.ndarray) -> float:
    return match_onsets(first, second).f1 if len(first) + len(second) else 1.0


def _mean_over_others(matrix: np.ndarray) -> np.ndarray:
    """Return the mean of each row (n, n) without its diagonal."""
    return (matrix.sum(axis=1) - np.diag(matrix)) / (len(matrix) - 1)


def _correlations(waves: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the correlations (n, n) of the sounds' smoothed onset envelopes."""
    librosa = load_librosa()
    hop = round(_HOP_SECONDS * sample_rate)
    envelopes = librosa.onset.onset_strength_multi(y=waves, sr=sample_rate, hop_length=hop, channels=None)
    smooth = gaussian_filter1d(envelopes[:, 0], _SMOOTHING_SECONDS / _HOP_SECONDS, axis=-1)
    centred = smooth - smooth.mean(axis=-1, keepdims=True)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-9)
    return unit @ unit.T
