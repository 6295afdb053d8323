"""Waves from log-mel frames by the fast Griffin–Lim algorithm of librosa (Perraudin et al. 2013)."""

import dataclasses
import functools
from typing import ClassVar

import librosa
import numpy as np

from flowley_jax.audio.mel import MelConfig, from_log, mel_basis
from flowley_jax.audio.protocols import check_log_mels

_MOMENTUM = 0.99
_SEED = 0
_TINY = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class GriffinLimVocoder:
    """Deterministic vocoder that needs no weights; see `Vocoder`.

    Attributes:
      mel: the mel front end that made the frames.
      iterations: of phase estimation.
    """

    name: ClassVar[str] = "griffin_lim"

    mel: MelConfig
    iterations: int = 16

    @property
    def sample_rate(self) -> int:
        return self.mel.sample_rate

    def __call__(self, log_mels: np.ndarray) -> np.ndarray:
        """Log-mel frames (B, frames, bins) to waves (B, frames·hop) float32 within [-1, 1], aligned with
        them.

        Raises:
          FlowleyError: if the frames do not have the front end's bins.
        """
        check_log_mels(log_mels, self.mel.bins)
        return np.stack([self._wave(log_mel) for log_mel in log_mels])

    def _wave(self, log_mel: np.ndarray) -> np.ndarray:
        magnitude = magnitude_from_mel(from_log(log_mel.astype(np.float32), self.mel), self.mel)
        # Frame 0 starts `pad` samples before the wave does (see mel.py), hence uncentred framing and the cut.
        padded = librosa.griffinlim(
            magnitude.T,
            n_iter=self.iterations,
            hop_length=self.mel.hop,
            n_fft=self.mel.n_fft,
            center=False,
            momentum=_MOMENTUM,
            random_state=_SEED,
        )
        wave = padded[self.mel.pad : self.mel.pad + len(log_mel) * self.mel.hop]
        # Turned down as a whole where it would clip: clipping is heard as clicks.
        return (wave / max(1.0, float(np.abs(wave).max(initial=0.0)))).astype(np.float32)


def magnitude_from_mel(mel: np.ndarray, config: MelConfig, *, iterations: int = 8) -> np.ndarray:
    """Non-negative magnitudes (frames, n_fft/2 + 1) whose mel energies are close to `mel` (frames, bins).

    Starts at the clipped least-squares solution and improves it by the multiplicative updates of
    non-negative least squares (Lee and Seung 2001), which keep every magnitude non-negative.
    """
    basis = mel_basis(config)
    magnitude = np.maximum(mel @ _pseudo_inverse(config).T, _TINY)
    target = mel @ basis
    for _ in range(iterations):
        magnitude = magnitude * target / np.maximum((magnitude @ basis.T) @ basis, _TINY)
    return magnitude


@functools.cache
def _pseudo_inverse(config: MelConfig) -> np.ndarray:
    return np.linalg.pinv(mel_basis(config).astype(np.float64)).astype(np.float32)
