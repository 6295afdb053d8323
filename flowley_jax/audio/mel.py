"""Log-mel spectrograms of the published front ends (spec: pipeline.md, "Audio front end").

For a wave x clamped to [-1, 1] and reflect-padded by (n_fft - hop)/2 on both sides, frame i is the windowed
stretch that starts at sample i·hop of the padded wave, so that it is centred at sample (i + 1/2)·hop of x:

    M = B · sqrt(re² + im² + 1e-9),    log-mel = log(max(M, 1e-5))

with B the Slaney mel basis and the logarithm to base 10 (16 kHz) or e (44.1 kHz).
"""

import dataclasses
import functools
from typing import Literal

import librosa
import numpy as np
import scipy.signal

from flowley_jax.errors import FlowleyError

_MAGNITUDE_EPS = 1e-9
_MEL_FLOOR = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelConfig:
    """A mel front end. `n_fft` is also the window's length; frequencies are in Hz, `hop` in samples."""

    name: str
    sample_rate: int
    n_fft: int
    hop: int
    bins: int
    f_max: float
    log: Literal["log10", "ln"]

    @property
    def pad(self) -> int:
        """Samples reflected on each side, which makes floor(samples/hop) frames."""
        return (self.n_fft - self.hop) // 2

    @property
    def floor(self) -> float:
        """The lowest value that a log-mel entry can have."""
        return float(np.log10(_MEL_FLOOR) if self.log == "log10" else np.log(_MEL_FLOOR))


MEL_16K = MelConfig(name="16k", sample_rate=16_000, n_fft=1024, hop=256, bins=80, f_max=8000.0, log="log10")
MEL_44K = MelConfig(name="44k", sample_rate=44_100, n_fft=2048, hop=512, bins=128, f_max=22_050.0, log="ln")
_PRESETS = {config.name: config for config in (MEL_16K, MEL_44K)}


def mel_preset(name: str) -> MelConfig:
    """The front end called "16k" or "44k".

    Raises:
      FlowleyError: for any other name.
    """
    if name not in _PRESETS:
        raise FlowleyError(f"mel front end {name!r} does not exist; there are {', '.join(sorted(_PRESETS))}")
    return _PRESETS[name]


def log_mel(wave: np.ndarray, config: MelConfig) -> np.ndarray:
    """Log-mel spectrogram of one wave or of several.

    Args:
      wave: (..., samples), at `config.sample_rate`.
      config: the front end.

    Returns:
      (..., floor(samples/hop), bins) float32.

    Raises:
      FlowleyError: if the wave has no more samples than the reflection needs.
    """
    wave = np.asarray(wave)
    if wave.shape[-1] <= config.pad:
        raise FlowleyError(
            f"a wave of {wave.shape[-1]} samples is too short for a mel spectrogram; "
            f"at least {config.pad + 1} are needed"
        )
    magnitude = np.sqrt(np.abs(_spectrum(wave, config)) ** 2 + _MAGNITUDE_EPS)
    return to_log(magnitude @ mel_basis(config).T, config).astype(np.float32)


def to_log(mel: np.ndarray, config: MelConfig) -> np.ndarray:
    """log(max(mel, 1e-5)) to the front end's base; any shape."""
    clipped = np.maximum(mel, _MEL_FLOOR)
    return np.log10(clipped) if config.log == "log10" else np.log(clipped)


def from_log(log_mels: np.ndarray, config: MelConfig) -> np.ndarray:
    """Inverse of `to_log`; any shape."""
    return np.power(10.0, log_mels) if config.log == "log10" else np.exp(log_mels)


@functools.cache
def mel_basis(config: MelConfig) -> np.ndarray:
    """The Slaney basis from magnitudes to mel energies, (bins, n_fft/2 + 1) float32, read-only."""
    basis = librosa.filters.mel(
        sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.bins, fmin=0.0, fmax=config.f_max
    )
    basis.setflags(write=False)
    return basis


@functools.cache
def hann_window(length: int) -> np.ndarray:
    """The periodic Hann window, (length,) float64, read-only."""
    window = np.array(scipy.signal.get_window("hann", length, fftbins=True))
    window.setflags(write=False)
    return window


def _spectrum(wave: np.ndarray, config: MelConfig) -> np.ndarray:
    """(..., frames, n_fft/2 + 1) complex128; double precision keeps quiet bins exact beside loud ones."""
    clamped = np.clip(wave.astype(np.float64), -1.0, 1.0)
    around = [(0, 0)] * (wave.ndim - 1) + [(config.pad, config.pad)]
    padded = np.pad(clamped, around, mode="reflect")
    stretches = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft, axis=-1)
    return np.fft.rfft(stretches[..., :: config.hop, :] * hann_window(config.n_fft), axis=-1)
