"""The audio front end of ImageBind: images of three clips of a sound, by the filter bank of Kaldi.

It computes in float64 and is fed whole sounds, so it is not a part of the network.
"""

import functools
from fractions import Fraction

import numpy as np

from flowley_jax.errors import FlowleyError
from flowley_jax.networks.mel_filters import triangles

SAMPLE_RATE = 16_000
CLIPS, CLIP_SECONDS = 3, 2
BINS, FRAMES = 128, 204
_WINDOW, _HOP, _FFT = 400, 160, 512
_LOWEST_HZ, _HIGHEST_HZ = 20.0, 8000.0
_PREEMPHASIS = 0.97
_LEAST_POWER = 1.1920929e-07
_MEAN, _SCALE = -4.268, 9.138


def clip_images(wave: np.ndarray) -> np.ndarray:
    """Return the images of three clips of 2 s, at the start, in the middle and at the end of a sound.

    The mean of a clip is subtracted from the sound itself, as by the published program, so that clips which
    overlap, in sounds below 6 s, depend on the earlier ones. Only the first channel is heard. A sound below
    2 s is padded with zeros in the logarithmic domain.

    Args:
      wave: (channels, N) at 16 kHz.

    Returns:
      float32 (3, 128, 204), normalised, low frequencies first.

    Raises:
      FlowleyError: the sound is shorter than one window, 400 samples.
    """
    if wave.shape[-1] < _WINDOW:
        raise FlowleyError(
            f"a sound of {wave.shape[-1]} samples is too short for ImageBind; expected at least {_WINDOW} at "
            f"{SAMPLE_RATE} Hz"
        )
    wave = np.array(wave, np.float32)
    return np.stack([_image(wave[:, start:end]) for start, end in clip_samples(wave.shape[1])])


def clip_samples(count: int) -> list[tuple[int, int]]:
    """Return the first sample of each clip, and the one behind its last, for a sound of `count` samples."""
    # The rest of the division is that of a float64; all that follows is exact.
    last = Fraction(max(count / SAMPLE_RATE - CLIP_SECONDS, 0.0))
    starts = [index * last / (CLIPS - 1) for index in range(CLIPS)]
    return [(int(SAMPLE_RATE * start), int(SAMPLE_RATE * (start + CLIP_SECONDS))) for start in starts]


def _image(clip: np.ndarray) -> np.ndarray:
    clip -= clip.mean(dtype=np.float64).astype(np.float32)
    image = filter_bank(clip[0])[:FRAMES]
    padded = np.pad(image, ((0, FRAMES - len(image)), (0, 0))).T
    return ((padded - _MEAN) / _SCALE).astype(np.float32)


def filter_bank(wave: np.ndarray) -> np.ndarray:
    """Return the logarithm of the power in mel bins, float64 (1 + (N − 400) // 160, 128), of a wave (N,)."""
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(wave, np.float64), _WINDOW)[::_HOP]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    power = np.square(np.abs(np.fft.rfft((frames - _PREEMPHASIS * before) * _hann(), _FFT)))
    # The highest frequency has no weight.
    return np.log(np.maximum(power[:, :-1] @ _mel_matrix(), _LEAST_POWER))


@functools.cache
def _hann() -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(_WINDOW) / (_WINDOW - 1))


@functools.cache
def _mel_matrix() -> np.ndarray:
    """Return triangles over mel frequencies 1127·ln(1 + f/700), (256, 128) float64."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    edges = np.linspace(mel(_LOWEST_HZ), mel(_HIGHEST_HZ), BINS + 2)
    return triangles(mel(np.arange(_FFT // 2) * (SAMPLE_RATE / _FFT)), edges)
