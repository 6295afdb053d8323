"""Put a new sound together with a video's own one, in one or two channels."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import soxr

from flowley_jax.common.ranges import Share
from flowley_jax.common.typed import check_values
from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import probe, read_audio, read_channels

# Sample rates of AAC, which is the sound of every video that we write.
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_USUAL_RATE = 48_000
# The new sound turns into a kept part of the own one over this time.
_FADE_SECONDS = 0.04
_PART = re.compile(r"\s*(\d+(?:\.\d*)?)\s*-\s*(\d+(?:\.\d*)?)\s*", re.ASCII)

# Parts of a sound, as starts and ends in seconds.
Keep = tuple[tuple[float, float], ...]


def check_keep(keep: Keep, name: str) -> None:
    """Raise FlowleyError unless every part starts at 0 or later, and ends after its start."""
    for start, end in keep:
        if not (0.0 <= start < end < math.inf):
            raise FlowleyError(
                f"{name}: the part {start:g}-{end:g} must start at 0 or later and end after its start"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
    """Settings of the mix of the new sound and the video's own one.

    Attributes:
      keep_original: factor of the video's own sound; 0 leaves it out.
      stereo: write two channels, even if both are the same.
      keep: parts in which the video's own sound takes the place of the new one, in seconds from the start of
        the new one.
    """

    keep_original: Share = 0.0
    stereo: bool = False
    keep: Keep = ()

    def __post_init__(self):
        check_values(self, "mixing")
        check_keep(self.keep, "mixing")


ONLY_NEW = Mixing()


def mixed(
    wave: np.ndarray, rate: int, mixing: Mixing, video: Path | None, *, start: float = 0.0
) -> tuple[np.ndarray, int]:
    """Return the sound to write and its sample rate, which is the higher one of both sounds.

    A video without a sound of its own changes nothing. The result is as long as `wave`. Kept parts begin and
    end with a fade of 40 ms around the joint.

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
    if (mixing.keep_original or mixing.keep) and video is not None and probe(video).has_audio:
        own, own_rate = read_sound(video)
        own = own[round(start * own_rate) :]
        both_rate = max(rate, own_rate)
        wave, own = (_at_rate(x, from_rate, both_rate) for x, from_rate in ((wave, rate), (own, own_rate)))
        wave, own = _alike(wave, own)
        share = own_share(mixing.keep, len(wave), both_rate).reshape(-1, *[1] * (wave.ndim - 1))
        # Sounds of equal power keep it in the fade.
        new_part, own_part = np.cos(0.5 * np.pi * share), np.sin(0.5 * np.pi * share)
        wave = new_part * (wave + np.float32(mixing.keep_original) * own) + own_part * own
        rate = both_rate
    if mixing.stereo:
        wave = _in_channels(wave, 2)
    return wave, rate


def own_share(keep: Keep, samples: int, rate: int) -> np.ndarray:
    """Return the share (samples,) float32 of the own sound: 1 in kept parts, 0 elsewhere, ramps between."""
    time, share = np.arange(samples) / rate, np.zeros(samples)
    for start, end in keep:
        # No fade where there is nothing to fade from.
        rise = np.inf if start <= 0.0 else (time - start) / _FADE_SECONDS + 0.5
        fall = np.inf if end >= samples / rate else (end - time) / _FADE_SECONDS + 0.5
        share = np.maximum(share, np.clip(np.minimum(rise, fall), 0.0, 1.0))
    return share.astype(np.float32)


def parse_keep(text: str) -> Keep:
    """Return the parts that a text such as "0-2.5,6-8" names.

    Raises:
      FlowleyError: the text does not have this form, or a part has no length.
    """
    found = [_PART.fullmatch(part) for part in text.split(",")]
    if not all(found):
        raise FlowleyError(f"--keep={text!r} must name parts in seconds, such as 0-2.5,6-8")
    keep = tuple((float(match[1]), float(match[2])) for match in found if match)
    check_keep(keep, "--keep")
    return keep


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


def _alike(wave: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both sounds with the same channels, and the second one in the length of the first."""
    if wave.ndim != own.ndim:
        wave, own = _in_channels(wave, 2), _in_channels(own, 2)
    missing = max(0, len(wave) - len(own))
    return wave, np.pad(own[: len(wave)], [(0, missing), *[(0, 0)] * (own.ndim - 1)])
