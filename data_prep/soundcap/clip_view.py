"""The frames and audio of a clip that a caption model gets."""

import base64
import dataclasses
import functools
import io
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from data_prep.rejection import Rejection, read_or_reject
from flowley_jax.media.read import read_audio, read_frames

# The rate that the models' audio encoders expect.
SAMPLE_RATE = 16_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Part of a clip that a model gets, and its resolution.

    Attributes:
      seconds: length in seconds, from the start of the clip.
      fps: frames per second.
      size: longest side of a frame in pixels; smaller frames are not enlarged.
      sound: whether the model also gets the audio.
    """

    seconds: float = 10.0
    fps: float = 2.0
    size: int = 448
    sound: bool = False


@dataclasses.dataclass(frozen=True)
class ClipView:
    """The frames, and optionally the audio, of one clip.

    Attributes:
      frames: (T, H, W, 3) uint8.
      fps: frames per second.
      wave: (N,) float32 at 16 kHz; None without audio.
    """

    frames: np.ndarray
    fps: float
    wave: np.ndarray | None = None

    def frames_as_jpeg(self) -> list[str]:
        """Return every frame as a base64-encoded JPEG."""
        return [_base64(_jpeg(frame)) for frame in self.frames]

    def wave_as_wav(self) -> str:
        """Return the audio as a base64-encoded WAV file. The view must have audio."""
        assert self.wave is not None
        content = io.BytesIO()
        soundfile.write(content, self.wave, SAMPLE_RATE, format="WAV")
        return _base64(content.getvalue())


def load_view(config: ViewConfig, path: str) -> ClipView | Rejection:
    """Read a clip, or return the reason why it cannot be used."""
    return read_or_reject(path, functools.partial(_read_view, config))


def _read_view(config: ViewConfig, path: Path) -> ClipView:
    frames = read_frames(path, fps=config.fps, seconds=config.seconds)
    frames = np.stack([_shrink(frame, config.size) for frame in frames])
    wave = read_audio(path, sample_rate=SAMPLE_RATE, seconds=config.seconds) if config.sound else None
    return ClipView(frames, config.fps, wave)


def _shrink(frame: np.ndarray, size: int) -> np.ndarray:
    image = Image.fromarray(frame)
    image.thumbnail((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _jpeg(frame: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "JPEG", quality=90)
    return content.getvalue()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
