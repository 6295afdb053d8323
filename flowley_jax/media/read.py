"""Reading video and sound with PyAV, at the rates and sizes that the features need."""

import contextlib
import dataclasses
import fractions
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import av.container
import av.error
import av.filter
import numpy as np
import soxr
from av.stream import Disposition
from PIL import Image

from flowley_jax.errors import FlowleyError

SILENT_PEAK = 1e-6
NORMALISED_PEAK = 0.95
# More than its filter is long.
_RESAMPLER_SECONDS = 1.0
# Decoding what lies between two frames is faster than a jump to the key frame before the second.
_JUMP_SECONDS = 15.0


class MediaError(FlowleyError):
    """A file that cannot be used.

    Attributes:
      reason: missing, unreadable, picture, no_video, no_audio or silent.
    """

    def __init__(self, message: str, reason: str = "unreadable"):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """What a file holds: duration in seconds, frame rate in frames per second, pixels, sample rate in Hz."""

    duration: float
    video_fps: float | None
    width: int | None
    height: int | None
    has_audio: bool
    sample_rate: int | None


def probe(path: str | Path) -> MediaInfo:
    """Reads the file's headers.

    Raises:
      MediaError: the file is missing or is no media file.
    """
    with _open(Path(path)) as container:
        video = _video_stream(container)
        audio = next(iter(container.streams.audio), None)
        return MediaInfo(
            duration=(container.duration or 0) / av.time_base,
            video_fps=float(video.average_rate) if video and video.average_rate else None,
            width=video.width if video else None,
            height=video.height if video else None,
            has_audio=audio is not None,
            sample_rate=audio.rate if audio else None,
        )


def read_frames(
    path: str | Path, *, fps: float, size: int | None = None, seconds: float | None = None
) -> np.ndarray:
    """Frames that ffmpeg's `fps` filter gives from the start of the file, turned upright.

    Args:
      fps: frames per second.
      size: resize to size × size as 8-bit, bicubic (a = −0.5), antialiased, aspect ratio not kept.
      seconds: at most round(seconds·fps) frames; a shorter video gives fewer.

    Returns: uint8 (T, H, W, 3), RGB.

    Raises:
      MediaError: the file is missing, unreadable, has no video stream or no frame.
    """
    path = Path(path)
    limit = None if seconds is None else round(seconds * fps)
    frames: list[np.ndarray] = []
    with _open(path) as container:
        stream = _video_stream(container)
        if stream is None:
            raise MediaError(f"{path}: has no video stream", "no_video")
        stream.thread_type = "AUTO"
        for frame, rotation in _at_rate(container, stream, fps):
            image = np.rot90(frame.to_ndarray(format="rgb24"), rotation // 90)
            frames.append(_resized(image, size) if size else image)
            if limit is not None and len(frames) >= limit:
                break
    if not frames:
        raise MediaError(f"{path}: its video stream has no frame", "unreadable")
    return np.stack(frames)


def read_frames_at(path: str | Path, shares: Sequence[float]) -> list[np.ndarray]:
    """The first frames at or behind some instants, turned upright; none for an instant behind the last frame.

    Args:
      shares: the instants in ascending order, as shares of the length that the file's header states.

    Returns: for each frame uint8 (H, W, 3), RGB; none where the header states no length.

    Raises:
      MediaError: the file is missing, unreadable or has no video stream.
    """
    path = Path(path)
    with _open(path) as container:
        stream = _video_stream(container)
        if stream is None:
            raise MediaError(f"{path}: has no video stream", "no_video")
        if not container.duration:
            return []
        stream.thread_type = "AUTO"
        length, start = container.duration / av.time_base, (container.start_time or 0) / av.time_base
        found = list(_frames_from(container, stream, [start + share * length for share in shares]))
        return [np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) for frame in found]


def read_audio(
    path: str | Path, *, sample_rate: int, seconds: float | None = None, normalize_peak: bool = False
) -> np.ndarray:
    """The sound as one channel: mean of the channels, peak normalised if asked, resampled, then cut.

    Args:
      sample_rate: Hz. The resampler is soxr's high quality one; the published features were made with a
        windowed sinc of other parameters.
      seconds: at most this much; a shorter sound stays shorter.
      normalize_peak: divide by the peak of the whole track and multiply by 0.95.

    Returns: float32 (N,).

    Raises:
      MediaError: the file is missing, unreadable, has no audio stream or no sample, or is silent where
        its peak is to be normalised.
    """
    path = Path(path)
    with _open(path) as container:
        if not container.streams.audio:
            raise MediaError(f"{path}: has no audio stream", "no_audio")
        stream = container.streams.audio[0]
        rate = stream.rate
        # A peak is that of the whole track; otherwise no more is needed than the resampler reads.
        limit = None
        if seconds is not None and not normalize_peak:
            limit = round((seconds + _RESAMPLER_SECONDS) * rate)
        chunks = list(_mono(container, stream, limit))
    if not chunks:
        raise MediaError(f"{path}: its audio stream has no sample", "unreadable")
    wave = np.concatenate(chunks)
    if normalize_peak:
        peak = float(np.abs(wave).max())
        if peak < SILENT_PEAK:
            raise MediaError(f"{path}: is silent (peak {peak:.1e})", "silent")
        wave = wave * (NORMALISED_PEAK / peak)
    if rate != sample_rate:
        wave = soxr.resample(wave, rate, sample_rate)
    wave = wave if seconds is None else wave[: round(seconds * sample_rate)]
    return np.ascontiguousarray(wave, np.float32)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[av.container.InputContainer]:
    """Opens a file and turns every library error inside the block into one that names it."""
    if not path.exists():
        raise MediaError(f"{path}: no such file", "missing")
    try:
        with av.open(str(path)) as container:
            if container.format.name == "image2" or container.format.name.endswith("_pipe"):
                raise MediaError(f"{path}: is a picture, not a video", "picture")
            yield container
    except (av.error.FFmpegError, EOFError) as error:
        message = f"{path}: not readable as video or sound ({_reason(error)})"
        raise MediaError(message, "unreadable") from error


def _mono(container, stream, limit: int | None) -> Iterator[np.ndarray]:
    """The mean of the channels, piece by piece, until there are so many samples."""
    resampler, count = av.AudioResampler(format="fltp"), 0
    for frame in container.decode(stream):
        for part in resampler.resample(frame):
            yield part.to_ndarray().mean(axis=0)
            count += part.samples
        if limit is not None and count >= limit:
            return


def _video_stream(container: av.container.InputContainer):
    """The first that is not the cover of a sound file."""
    return next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _at_rate(container, stream, fps: float) -> Iterator[tuple[av.VideoFrame, int]]:
    """Frames, and by how many degrees counterclockwise each is to be turned to stand upright."""
    if stream.format is None:
        # Headers without the stream's parameters, as a file cut short may have them.
        return
    graph = av.filter.Graph()
    source = graph.add_buffer(template=stream)
    wanted = fractions.Fraction(fps).limit_denominator(1001)
    rate = graph.add("fps", f"fps={wanted}{_lead(container, stream, fps)}")
    sink = graph.add("buffersink")
    source.link_to(rate)
    rate.link_to(sink)
    graph.configure()
    rotation = None
    for frame in container.decode(stream):
        rotation = frame.rotation
        source.push(frame)
        yield from ((out, rotation) for out in _pull(sink))
    if rotation is not None:
        source.push(None)
        yield from ((out, rotation) for out in _pull(sink))


def _lead(container, stream, fps: float) -> str:
    """Repeats the first frame from the file's start on, where the picture begins a frame or more later."""
    start = (container.start_time or 0) / av.time_base
    if stream.start_time is None or float(stream.start_time * stream.time_base) - start < 1.0 / fps:
        return ""
    return f":start_time={start}"


def _frames_from(container, stream, times: Sequence[float]) -> Iterator[av.VideoFrame]:
    """The first frame at or behind each of some ascending times in seconds."""
    frames, reached = container.decode(stream), 0.0
    for time in times:
        if time - reached > _JUMP_SECONDS:
            container.seek(int(time * av.time_base))
            frames = container.decode(stream)
        frame = next((frame for frame in frames if frame.time is not None and frame.time >= time), None)
        if frame is None:
            return
        yield frame
        reached = time


def _pull(sink) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield sink.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
