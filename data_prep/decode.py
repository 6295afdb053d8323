"""A media file as what the encoders are given, or the reason why it cannot be used."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.files import local_copy
from data_prep.rejection import Reason, Rejection, one_line
from data_prep.settings import Lack, RecordSettings
from flowley_jax.audio.mel import log_mel
from flowley_jax.audio.protocols import samples_for
from flowley_jax.encoders.pixels import PixelEncoder
from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import SILENT_PEAK, MediaError, MediaInfo, probe, read_audio, read_frames

# Mean difference of two frames, in steps of 8 bits, that an encoder makes of one and the same picture.
_STILL = 0.25
# How much a header may state too much.
_ROUNDING_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What is made of a clip without devices.

    Attributes:
      log_mel: (frames, bins) float32; None without sound.
      frames: (Tv, H, W, 3) uint8; None without picture, and where the embedded encoder has made
      video_features: (Tv, video_dim) float32 of them.
    """

    log_mel: np.ndarray | None = None
    frames: np.ndarray | None = None
    video_features: np.ndarray | None = None


class _Rejected(FlowleyError):
    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason


def decode(settings: RecordSettings, path: str, may_lack: Lack = "") -> Decoded | Rejection:
    """Reads a clip; whatever is wrong with it is the result, not an exception.

    Args:
      may_lack: a stream without which the clip can be used.
    """
    try:
        with local_copy(path) as local:
            return _decode(local, settings, may_lack)
    except (MediaError, _Rejected) as error:
        return Rejection(str(error.reason), one_line(error).removeprefix(f"{path}: "))
    except Exception as error:  # A file that breaks a decoder in a new way must not end the run.
        return Rejection(Reason.UNREADABLE, one_line(error))


def _decode(path: Path, settings: RecordSettings, may_lack: Lack) -> Decoded:
    info = probe(path)
    if info.width is None and may_lack != "video":
        raise _Rejected(Reason.NO_VIDEO, "has no video stream")
    if not info.has_audio and may_lack != "audio":
        raise _Rejected(Reason.NO_AUDIO, "has no audio stream")
    if info.duration > settings.max_seconds:
        raise _Rejected(Reason.TOO_LONG, f"lasts {info.duration:.0f} s, more than {settings.max_seconds:g}")
    if (info.video_fps or 0.0) > settings.max_frame_rate:
        limit = f"more than {settings.max_frame_rate:g}"
        raise _Rejected(Reason.FRAME_RATE, f"has {info.video_fps:g} frames per second, {limit}")
    frames = None if info.width is None else _frames(path, info, settings)
    mel = log_mel(_wave(path, info, settings), settings.mel_config) if info.has_audio else None
    encoder = settings.video_encoder
    if frames is not None and isinstance(encoder, PixelEncoder):
        return Decoded(log_mel=mel, video_features=encoder(frames))
    return Decoded(log_mel=mel, frames=frames)


def _frames(path: Path, info: MediaInfo, settings: RecordSettings) -> np.ndarray:
    size = settings.video_encoder.frame_size
    frames = read_frames(path, fps=settings.video_fps, size=size, seconds=settings.seconds)
    wanted = round(settings.seconds * settings.video_fps)
    if len(frames) == 1 and wanted > 1:
        raise _Rejected(Reason.PICTURE, "its video is a single frame")
    frames = _padded(frames, wanted, settings.video_fps, "picture", info, settings, mode="edge")
    if settings.reject_still and _is_still(frames):
        raise _Rejected(Reason.PICTURE, "shows the same picture throughout")
    return frames


def _wave(path: Path, info: MediaInfo, settings: RecordSettings) -> np.ndarray:
    mel = settings.mel_config
    samples = samples_for(settings.seconds, mel)
    wave = read_audio(
        path,
        sample_rate=mel.sample_rate,
        seconds=samples / mel.sample_rate,
        normalize_peak=settings.normalize_peak,
    )
    peak = float(np.abs(wave).max(initial=0.0))
    if settings.reject_silent and peak < SILENT_PEAK:
        raise _Rejected(Reason.SILENT, f"its sound has a peak of {peak:.1e}")
    return _padded(wave, samples, mel.sample_rate, "sound", info, settings, mode="constant")


def _padded(
    array: np.ndarray,
    length: int,
    rate: float,
    what: str,
    info: MediaInfo,
    settings: RecordSettings,
    *,
    mode: Any,
) -> np.ndarray:
    short = length - len(array)
    if short <= 0:
        return array[:length]
    if short > settings.pad_seconds * rate:
        found, needed = len(array) / rate, length / rate
        # A sound that ends before its picture does is no sign of it.
        whole = what == "sound" and info.width is not None
        if info.duration - _ROUNDING_SECONDS > found and not whole:
            stated = f"its header states {info.duration:.2f} s"
            raise _Rejected(Reason.TRUNCATED, f"has {found:.2f} s of {what}, {stated}")
        raise _Rejected(Reason.TOO_SHORT, f"has {found:.2f} s of {what}, {needed:.2f} s are needed")
    return np.pad(array, [(0, short), *[(0, 0)] * (array.ndim - 1)], mode=mode)


def _is_still(frames: np.ndarray) -> bool:
    first = frames[0].astype(np.int16)
    return len(frames) > 1 and all(np.abs(frame - first).mean() < _STILL for frame in frames[1:])
