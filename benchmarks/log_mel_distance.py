"""A distance of sets of sounds that needs no network: Fréchet's, of statistics of log-mel energies."""

from collections.abc import Sequence
from pathlib import Path

import librosa
import numpy as np

from flowley_jax.evaluation.sounds import read_sounds

_SAMPLE_RATE = 16_000
_BANDS, _WINDOW, _HOP, _FLOOR = 64, 1024, 256, 1e-6


def log_mel_distance(
    sounds: Sequence[np.ndarray], reference: Sequence[np.ndarray], sample_rate: int
) -> float:
    """Return the Fréchet distance of two sets of waves, with diagonal covariances.

    The features of a sound are, for each of 64 mel bands, the mean, the standard deviation and the 95th
    percentile over time of its logarithmic energy.

    Args:
      sounds, reference: waves (N,) at `sample_rate` Hz.
    """
    first, second = (
        np.stack([_features(wave, sample_rate) for wave in waves]) for waves in (sounds, reference)
    )
    means = np.square(first.mean(0) - second.mean(0)).sum()
    return float(means + np.square(first.std(0) - second.std(0)).sum())


def log_mel_distance_to_clips(folder: Path, clips: Path) -> float:
    """Return the distance of a folder of sounds, named by their clips, from the sounds of these clips."""
    sounds = read_sounds(folder, sample_rate=_SAMPLE_RATE).waves
    real = read_sounds(clips, sample_rate=_SAMPLE_RATE).waves
    return log_mel_distance(list(sounds.values()), [real[name] for name in sounds], _SAMPLE_RATE)


def _features(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    energy = librosa.feature.melspectrogram(
        y=wave.astype(np.float64), sr=sample_rate, n_fft=_WINDOW, hop_length=_HOP, n_mels=_BANDS
    )
    log_energy = np.log(energy + _FLOOR)
    return np.concatenate([log_energy.mean(1), log_energy.std(1), np.percentile(log_energy, 95, axis=1)])
