"""Log-mel spectrograms, as the published codecs and vocoders of 16 and 44.1 kHz were trained on.

A wave x is clamped to [-1, 1] and reflect-padded by (n_fft - hop)/2 on both sides. Frame i is the windowed
segment that starts at sample i·hop of the padded wave, so it is centred at sample (i + 1/2)·hop of x:

    M = B · sqrt(re² + im² + 1e-9),    log-mel = log(max(M, 1e-5))

with B the Slaney mel basis and the logarithm to base 10 (16 kHz) or e (44.1 kHz).
"""

import dataclasses
import functools
from typing import Literal

import numpy as np
import scipy.signal

from flowley_jax.common.librosa_loading import load_librosa
from flowley_jax.errors import FlowleyError

_MAGNITUDE_EPS = 1e-9
_MEL_FLOOR = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelConfig:
    """A mel front end.

    Attributes:
      name: name in `components.json` and on the command line.
      sample_rate: sample rate of the waves, in Hz.
      n_fft: length of the Fourier transform and of the window, in samples.
      hop: samples from one frame to the next.
      bins: mel bins per frame.
      f_max: highest frequency of the mel basis, in Hz; the lowest is 0.
      log: base of the logarithm.
    """

    name: str
    sample_rate: int
    n_fft: int
    hop: int
    bins: int
    f_max: float
    log: Literal["log10", "ln"]

    @property
    def pad(self) -> int:
        """Samples reflected on each side; with them, a wave has floor(samples/hop) frames."""
        return (self.n_fft - self.hop) // 2

    @property
    def floor(self) -> float:
        """Lowest possible value of a log-mel entry."""
        return float(np.log10(_MEL_FLOOR) if self.log == "log10" else np.log(_MEL_FLOOR))


MEL_16K = MelConfig(name="16k", sample_rate=16_000, n_fft=1024, hop=256, bins=80, f_max=8000.0, log="log10")
MEL_44K = MelConfig(name="44k", sample_rate=44_100, n_fft=2048, hop=512, bins=128, f_max=22_050.0, log="ln")
_PRESETS = {config.name: config for config in (MEL_16K, MEL_44K)}


def mel_preset(name: str) -> MelConfig:
    """Return the front end called "16k" or "44k".

    Raises:
      FlowleyError: the name is unknown.
    """
    if name not in _PRESETS:
        raise FlowleyError(f"mel front end {name!r} is unknown; known: {', '.join(sorted(_PRESETS))}")
    return _PRESETS[name]


def mel_with_bins(bins: int, where: str) -> MelConfig:
    """Return the front end with a number of bins.

    Args:
      bins: mel bins per frame.
      where: what needs the front end, for the message.

    Raises:
      FlowleyError: no front end has that many bins.
    """
    for mel in _PRESETS.values():
        if mel.bins == bins:
            return mel
    known = " or ".join(str(mel.bins) for mel in _PRESETS.values())
    raise FlowleyError(f"{where}: no mel front end has {bins} bins; expected {known}")


def log_mel(wave: np.ndarray, config: MelConfig) -> np.ndarray:
    """Return the log-mel spectrogram of one or more waves.

    Args:
      wave: waves (..., samples) at `config.sample_rate`.
      config: mel front end.

    Returns:
      Frames (..., floor(samples/hop), bins) float32.

    Raises:
      FlowleyError: the wave is too short to be reflected.
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
    """Return log(max(mel, 1e-5)) to the front end's base, for any shape."""
    clipped = np.maximum(mel, _MEL_FLOOR)
    return np.log10(clipped) if config.log == "log10" else np.log(clipped)


def from_log(log_mels: np.ndarray, config: MelConfig) -> np.ndarray:
    """Return mel energies from their logarithms, for any shape: the inverse of `to_log`."""
    return np.power(10.0, log_mels) if config.log == "log10" else np.exp(log_mels)


@functools.cache
def mel_basis(config: MelConfig) -> np.ndarray:
    """Return the Slaney basis from magnitudes to mel energies, (bins, n_fft/2 + 1) float32, read-only."""
    basis = load_librosa().filters.mel(
        sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.bins, fmin=0.0, fmax=config.f_max
    )
    basis.setflags(write=False)
    return basis


@functools.cache
def hann_window(length: int) -> np.ndarray:
    """Return the periodic Hann window, (length,) float64, read-only."""
    window = np.array(scipy.signal.get_window("hann", length, fftbins=True))
    window.setflags(write=False)
    return window


def _spectrum(wave: np.ndarray, config: MelConfig) -> np.ndarray:
    """Return the short-time spectrum (..., frames, n_fft/2 + 1) complex128.

    Double precision keeps quiet bins exact next to loud ones.
    """
    clamped = np.clip(wave.astype(np.float64), -1.0, 1.0)
    padding = [(0, 0)] * (wave.ndim - 1) + [(config.pad, config.pad)]
    padded = np.pad(clamped, padding, mode="reflect")
    segments = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft, axis=-1)
    return np.fft.rfft(segments[..., :: config.hop, :] * hann_window(config.n_fft), axis=-1)
