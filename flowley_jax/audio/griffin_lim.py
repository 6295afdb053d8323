"""A vocoder by the fast Griffin–Lim algorithm (Perraudin et al. 2013), with librosa's implementation."""

import dataclasses
import functools
from typing import Annotated, ClassVar

import librosa
import numpy as np

from flowley_jax.audio.mel import MelConfig, from_log, mel_basis
from flowley_jax.audio.protocols import check_log_mels
from flowley_jax.common.component import HostComponent
from flowley_jax.common.ranges import Range
from flowley_jax.common.typed import check_values

_MOMENTUM = 0.99
_SEED = 0
_TINY = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class GriffinLimVocoder(HostComponent):
    """Deterministic vocoder without weights; see `Vocoder`.

    Attributes:
      mel: mel front end of the frames.
      iterations: iterations of phase estimation.
    """

    name: ClassVar[str] = "griffin_lim"

    mel: MelConfig
    iterations: Annotated[int, Range(least=1, most=10_000)] = 16

    def __post_init__(self):
        check_values(self, self.name)

    @property
    def sample_rate(self) -> int:
        return self.mel.sample_rate

    def __call__(self, log_mels: np.ndarray) -> np.ndarray:
        """Turn log-mel frames (B, frames, bins) into aligned waves (B, frames·hop) float32 within [-1, 1].

        Raises:
          FlowleyError: the frames have a different number of bins from the front end's.
        """
        check_log_mels(log_mels, self.mel.bins)
        return np.stack([self._wave(log_mel) for log_mel in log_mels])

    def _wave(self, log_mel: np.ndarray) -> np.ndarray:
        magnitude = magnitude_from_mel(from_log(log_mel.astype(np.float32), self.mel), self.mel)
        # Frame 0 starts `pad` samples before the wave (see mel.py): hence uncentred framing and the cut.
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
        # A wave that would clip is scaled as a whole, because clipping is audible as clicks.
        return (wave / max(1.0, float(np.abs(wave).max(initial=0.0)))).astype(np.float32)


def magnitude_from_mel(mel: np.ndarray, config: MelConfig, *, iterations: int = 8) -> np.ndarray:
    """Estimate magnitudes from mel energies.

    Starts from the clipped least-squares solution and improves it by the multiplicative updates of
    non-negative least squares (Lee and Seung 2001), which keep every magnitude non-negative.

    Args:
      mel: mel energies (frames, bins).
      config: mel front end.
      iterations: number of updates.

    Returns:
      Non-negative magnitudes (frames, n_fft/2 + 1).
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
