"""What a model is shown of a clip."""

import base64
import dataclasses
import io

import numpy as np
import soundfile
from PIL import Image

from data_prep.rejection import Reason, Rejection, one_line
from flowley_jax.media.read import MediaError, read_audio, read_frames

# What audio encoders take.
SAMPLE_RATE = 16_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Viewing:
    """How a clip is looked at.

    Attributes:
      seconds: how much of it, from its start.
      fps: frames for each second.
      size: longest side of a frame in pixels; smaller ones stay as they are.
      sound: whether the model hears it as well.
    """

    seconds: float = 10.0
    fps: float = 2.0
    size: int = 448
    sound: bool = False


@dataclasses.dataclass(frozen=True)
class Seen:
    """A clip as a model is shown it.

    Attributes:
      frames: (T, H, W, 3) uint8.
      fps: frames for each second.
      wave: (N,) float32 at 16 kHz; None for the picture alone.
    """

    frames: np.ndarray
    fps: float
    wave: np.ndarray | None = None

    def frames_as_jpeg(self) -> list[str]:
        """The frames in base64."""
        return [_base64(_jpeg(frame)) for frame in self.frames]

    def wave_as_wav(self) -> str:
        """The sound in base64; there must be one."""
        assert self.wave is not None
        content = io.BytesIO()
        soundfile.write(content, self.wave, SAMPLE_RATE, format="WAV")
        return _base64(content.getvalue())


def look(viewing: Viewing, path: str) -> Seen | Rejection:
    """Reads a clip; whatever is wrong with it is the result, not an exception."""
    try:
        frames = read_frames(path, fps=viewing.fps, seconds=viewing.seconds)
        frames = np.stack([_shrunk(frame, viewing.size) for frame in frames])
        if not viewing.sound:
            return Seen(frames, viewing.fps)
        return Seen(frames, viewing.fps, read_audio(path, sample_rate=SAMPLE_RATE, seconds=viewing.seconds))
    except MediaError as error:
        return Rejection(error.reason, one_line(error).removeprefix(f"{path}: "))
    except Exception as error:  # A file that breaks a decoder in a new way must not end the run.
        return Rejection(Reason.UNREADABLE, one_line(error))


def _shrunk(frame: np.ndarray, size: int) -> np.ndarray:
    image = Image.fromarray(frame)
    image.thumbnail((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _jpeg(frame: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "JPEG", quality=90)
    return content.getvalue()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
