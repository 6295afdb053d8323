"""A vocoder by the fast Griffin–Lim algorithm (Perraudin et al. 2013), with librosa's implementation."""

import dataclasses
import functools
from typing import Annotated, ClassVar

import numpy as np

from flowley_jax.audio.chunks import in_windows
from flowley_jax.audio.mel import MelConfig, from_log, mel_basis
from flowley_jax.audio.protocols import check_log_mels
from flowley_jax.common.component import HostComponent
from flowley_jax.common.librosa_loading import load_librosa
from flowley_jax.common.ranges import Range
from flowley_jax.common.typed import check_values

# Frames that each window adds to a long sound.
STRIDE = 2048
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

    @property
    def context(self) -> int:
        """Frames on each side that a sample depends on: frames overlap in each iteration and at the end."""
        return (self.iterations + 1) * (self.mel.n_fft // self.mel.hop)

    def __call__(self, log_mels: np.ndarray) -> np.ndarray:
        """Turn log-mel frames (B, frames, bins) into aligned waves (B, frames·hop) float32.

        The level is the frames' own, so samples may lie outside [-1, 1]. Long inputs run in windows, so that
        memory does not grow with the sound.

        Raises:
          FlowleyError: the frames have a different number of bins from the front end's.
        """
        check_log_mels(log_mels, self.mel.bins)
        return np.stack([self._wave(log_mel) for log_mel in log_mels])

    def _wave(self, log_mel: np.ndarray) -> np.ndarray:
        length = STRIDE + 2 * self.context

        def of_frames(indices: np.ndarray) -> np.ndarray:
            phases = _SEED if len(log_mel) <= length else _PhasesOfFrames(indices[0])
            return self._wave_of(log_mel[indices[0]], phases)[None]

        # The windows are of indices, because the initial phases depend on them.
        indices = np.arange(len(log_mel))[None]
        return in_windows(of_frames, indices, window=length, context=self.context, rate=self.mel.hop)[0]

    def _wave_of(self, log_mel: np.ndarray, phases: "int | _PhasesOfFrames") -> np.ndarray:
        librosa = load_librosa()
        magnitude = magnitude_from_mel(from_log(log_mel.astype(np.float32), self.mel), self.mel)
        # Frame 0 starts `pad` samples before the wave (see mel.py): hence uncentred framing and the cut.
        padded = librosa.griffinlim(
            magnitude.T,
            n_iter=self.iterations,
            hop_length=self.mel.hop,
            n_fft=self.mel.n_fft,
            center=False,
            momentum=_MOMENTUM,
            random_state=phases,
        )
        return padded[self.mel.pad : self.mel.pad + len(log_mel) * self.mel.hop].astype(np.float32)


class _PhasesOfFrames(np.random.RandomState):
    """Random state that draws the same initial phases for a frame in every window that holds it."""

    def __init__(self, indices: np.ndarray):
        """Create the state.

        Args:
          indices: consecutive frames of a window, counted from the start of the sound.
        """
        super().__init__(_SEED)
        self._start, self._end = int(indices[0]), int(indices[-1]) + 1

    def random(self, size: tuple[int, int]) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return uniform numbers in [0, 1) for the bins and frames of the window, (bins, frames)."""
        first, last = self._start // STRIDE, (self._end - 1) // STRIDE
        blocks = [np.random.RandomState(_SEED + i).random((size[0], STRIDE)) for i in range(first, last + 1)]
        return np.concatenate(blocks, axis=1)[:, self._start - first * STRIDE : self._end - first * STRIDE]


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
