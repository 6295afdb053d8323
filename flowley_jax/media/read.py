"""Read video and sound with PyAV, at the rates and sizes that the features need."""

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
# Sound to read past the end, so that the resampler's filter has all its input. The filter is much shorter.
_RESAMPLER_MARGIN = 1.0
# If the next frame is nearer than this, decoding up to it is faster than a seek to the key frame before it.
_SEEK_SECONDS = 15.0


class MediaError(FlowleyError):
    """A file that cannot be used.

    Attributes:
      reason: "missing", "unreadable", "picture", "no_video", "no_audio" or "silent".
    """

    def __init__(self, message: str, reason: str = "unreadable"):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """Streams of a media file; fields of a stream that the file lacks are None.

    Attributes:
      duration: seconds; 0 if the header does not state it.
      video_fps: mean frame rate in frames per second.
      width, height: size of the picture in pixels, before rotation.
      has_audio: whether there is an audio stream.
      sample_rate: sample rate of the sound in Hz.
    """

    duration: float
    video_fps: float | None
    width: int | None
    height: int | None
    has_audio: bool
    sample_rate: int | None


def probe(path: str | Path) -> MediaInfo:
    """Read a file's headers.

    Raises:
      MediaError: the file is missing or is not a media file.
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
    """Return the frames that FFmpeg's `fps` filter gives from the start of the file, turned upright.

    Args:
      fps: frames per second.
      size: resize to size × size in 8 bits, bicubic (a = −0.5), antialiased; the aspect ratio is not kept.
      seconds: return at most round(seconds·fps) frames; a shorter video gives fewer.

    Returns:
      uint8 (T, H, W, 3), RGB.

    Raises:
      MediaError: the file is missing, unreadable, or has no video stream or no frame.
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
    """Return the first frame at or after each of several instants, turned upright.

    Args:
      shares: instants in ascending order, as fractions of the duration that the file's header states.

    Returns:
      One uint8 (H, W, 3) RGB array per instant. Instants after the last frame have none, and the list is
      empty if the header states no duration.

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
        duration, start = container.duration / av.time_base, (container.start_time or 0) / av.time_base
        frames = list(_frames_from(container, stream, [start + share * duration for share in shares]))
        return [np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) for frame in frames]


def read_audio(
    path: str | Path, *, sample_rate: int, seconds: float | None = None, normalize_peak: bool = False
) -> np.ndarray:
    """Return the sound in one channel: average the channels, normalise the peak, resample, cut.

    Args:
      sample_rate: Hz. The resampler is soxr's high-quality one; the published features were made with a
        windowed sinc filter with different parameters.
      seconds: return at most this much; a shorter sound stays shorter.
      normalize_peak: scale the sound so that the peak of the whole track is 0.95.

    Returns:
      float32 (N,).

    Raises:
      MediaError: the file is missing or unreadable, has no audio stream or no sample, or, with
        `normalize_peak`, is silent.
    """
    path = Path(path)
    with _open(path) as container:
        if not container.streams.audio:
            raise MediaError(f"{path}: has no audio stream", "no_audio")
        stream = container.streams.audio[0]
        rate = stream.rate
        # Normalisation needs the peak of the whole track; otherwise the rest of the track is not decoded.
        limit = None
        if seconds is not None and not normalize_peak:
            limit = round((seconds + _RESAMPLER_MARGIN) * rate)
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


def channel_peak(path: str | Path, *, seconds: float) -> float:
    """Return the largest absolute sample of any audio channel; 0 if there is none.

    It can be large although `read_audio` returns silence: channels in opposite phase cancel each other.

    Args:
      path: file with an audio stream.
      seconds: length that is examined, from the start.

    Raises:
      MediaError: the file is missing or unreadable.
    """
    peak, resampler = 0.0, av.AudioResampler(format="fltp")
    with _open(Path(path)) as container:
        for stream in container.streams.audio[:1]:
            for frame in container.decode(stream):
                if frame.time is not None and frame.time > seconds:
                    break
                for converted in resampler.resample(frame):
                    peak = max(peak, float(np.abs(converted.to_ndarray()).max(initial=0.0)))
    return peak


@contextlib.contextmanager
def _open(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a file; turn every PyAV error within the block into a MediaError that names the file."""
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
    """Yield chunks of the mean of the channels until at least `limit` samples are out."""
    resampler, count = av.AudioResampler(format="fltp"), 0
    for frame in container.decode(stream):
        for chunk in resampler.resample(frame):
            yield chunk.to_ndarray().mean(axis=0)
            count += chunk.samples
        if limit is not None and count >= limit:
            return


def _video_stream(container: av.container.InputContainer):
    """Return the first video stream that is not the cover picture of a sound file, or None."""
    return next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _at_rate(container, stream, fps: float) -> Iterator[tuple[av.VideoFrame, int]]:
    """Yield frames at a rate, each with the degrees counterclockwise that turn it upright."""
    if stream.format is None:
        # The header of a file that was cut short may lack the stream's parameters.
        return
    graph = av.filter.Graph()
    source = graph.add_buffer(template=stream)
    exact_fps = fractions.Fraction(fps).limit_denominator(1001)
    rate = graph.add("fps", f"fps={exact_fps}{_start_option(container, stream, fps)}")
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


def _start_option(container, stream, fps: float) -> str:
    """Return the option of the `fps` filter that repeats the first frame from the file's start on.

    It is empty unless the picture begins a frame or more after the file's start.
    """
    start = (container.start_time or 0) / av.time_base
    if stream.start_time is None or float(stream.start_time * stream.time_base) - start < 1.0 / fps:
        return ""
    return f":start_time={start}"


def _frames_from(container, stream, times: Sequence[float]) -> Iterator[av.VideoFrame]:
    """Yield the first frame at or after each of several ascending times in seconds."""
    frames, reached = container.decode(stream), 0.0
    for time in times:
        if time - reached > _SEEK_SECONDS:
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
