"""Put a new sound together with a video's own one, in one or two channels."""

import dataclasses
from pathlib import Path

import numpy as np
import soxr

from flowley_jax.common.ranges import Share
from flowley_jax.common.typed import check_values
from flowley_jax.media.read import probe, read_audio, read_channels

# Sample rates of AAC, which is the sound of every video that we write.
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_USUAL_RATE = 48_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
    """What is written next to the new sound.

    Attributes:
      keep_original: factor of the video's own sound; 0 leaves it out.
      stereo: write two channels, even if both are the same.
    """

    keep_original: Share = 0.0
    stereo: bool = False

    def __post_init__(self):
        check_values(self, "mixing")


ONLY_NEW = Mixing()


def mixed(
    wave: np.ndarray, rate: int, mixing: Mixing, video: Path | None, *, start: float = 0.0
) -> tuple[np.ndarray, int]:
    """Return the sound to write and its sample rate, which is the higher one of both sounds.

    A video without a sound of its own changes nothing. The result is as long as `wave`.

    Args:
      wave: float32 (N,) or (N, C), the new sound.
      rate: Hz.
      mixing: what to add.
      video: the video, or None for a sound from text.
      start: time of the video at which `wave` starts, in seconds.

    Returns:
      float32 (N,) in one channel, or (N, 2).

    Raises:
      MediaError: the video's own sound is needed and cannot be read.
    """
    if mixing.keep_original and video is not None and probe(video).has_audio:
        own, own_rate = read_sound(video)
        own = own[round(start * own_rate) :]
        both_rate = max(rate, own_rate)
        wave, own = (_at_rate(x, from_rate, both_rate) for x, from_rate in ((wave, rate), (own, own_rate)))
        wave, rate = _sum(wave, mixing.keep_original * own), both_rate
    if mixing.stereo:
        wave = _in_channels(wave, 2)
    return wave, rate


def read_sound(path: Path) -> tuple[np.ndarray, int]:
    """Return the sound of a file in one or two channels, at a sample rate that AAC has.

    More than two channels are averaged to one. Other rates become 48 kHz.

    Returns:
      float32 (N,) or (N, 2), and the sample rate in Hz.

    Raises:
      MediaError: see `read_channels`.
    """
    planes, rate = read_channels(path)
    wave = planes.T if len(planes) == 2 else planes[0]
    if len(planes) > 2:
        wave = read_audio(path, sample_rate=rate)
    return (wave, rate) if rate in _AAC_RATES else (_at_rate(wave, rate, _USUAL_RATE), _USUAL_RATE)


def _at_rate(wave: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    return wave if rate == new_rate else np.asarray(soxr.resample(wave, rate, new_rate), np.float32)


def _in_channels(wave: np.ndarray, channels: int) -> np.ndarray:
    columns = wave if wave.ndim == 2 else wave[:, None]
    return np.repeat(columns, channels // columns.shape[1], axis=1)


def _sum(wave: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Return the sum over the length of the first sound; silence follows the end of the second one."""
    if wave.ndim != added.ndim:
        wave, added = _in_channels(wave, 2), _in_channels(added, 2)
    result = np.array(wave, np.float32)
    count = min(len(wave), len(added))
    result[:count] += added[:count]
    return result
