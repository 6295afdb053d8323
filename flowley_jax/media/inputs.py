"""Open media files, choose their streams, and tell when a picture is shown.

All readers count time from the file's start: FFmpeg's `start_time`, the earliest time stamp of its streams.
"""

import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.container
import av.error
from av.stream import Disposition

from flowley_jax.common.files import lfs_note
from flowley_jax.errors import FlowleyError

log = logging.getLogger(__name__)

# The longest jump of time stamps that is filled up, in seconds. A larger one is damage, or a slide show.
MAX_JUMP = 60.0
# Pixels of the largest picture that is decoded: 8192 × 8192.
MAX_PIXELS = 2**26
# The most pictures that any codec decodes before one that is shown earlier.
_MAX_REORDERED = 16
# If a picture is nearer than this, decoding up to it is faster than a seek to the key frame before it.
SEEK_SECONDS = 15.0
# Some containers seek by decoding times, which are a little earlier than those of the pictures.
_SEEK_MARGIN = 1
# What decoders raise for a damaged packet; that of AAC has codes of its own.
_DAMAGE = (av.error.InvalidDataError, av.error.UndefinedError)


class MediaError(FlowleyError):
    """A file that cannot be used.

    Attributes:
      reason: "missing", "unreadable", "picture", "no_video", "no_audio" or "silent".
    """

    def __init__(self, message: str, reason: str = "unreadable"):
        super().__init__(message)
        self.reason = reason


@contextlib.contextmanager
def open_input(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a file; turn every PyAV error within the block into a MediaError that names the file.

    Raises:
      MediaError: the file is missing, is not a media file, or is a picture.
    """
    if not path.exists():
        raise MediaError(f"{path}: no such file", "missing")
    if note := lfs_note(path):
        raise MediaError(f"{path}: {note}")
    # Without presentation times in the file, FFmpeg derives them from the decoding times.
    # Titles and comments may be in any encoding.
    options: dict[str, Any] = {"options": {"fflags": "+genpts"}, "metadata_errors": "replace"}
    with read_errors(path), av.open(ffmpeg_name(path), **options) as container:
        if container.format.name == "image2" or container.format.name.endswith("_pipe"):
            is_animated = container.format.name == "webp_pipe" and _is_animated_webp(path)
            kind = "an animated WebP, which FFmpeg cannot read; save it as .gif" if is_animated else None
            raise MediaError(f"{path}: is {kind or 'a picture, not a video'}", "picture")
        yield container


def _is_animated_webp(path: Path) -> bool:
    with open(path, "rb") as file:
        header = file.read(21)
    return header[12:16] == b"VP8X" and bool(header[20] & 2)


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn PyAV's errors within the block into a MediaError that names the file.

    Raises:
      MediaError: the file cannot be read.
    """
    try:
        yield
    except (av.error.FFmpegError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{path}: not readable as video or sound ({reason})") from error


def ffmpeg_name(path: Path) -> str:
    """Return a path as FFmpeg takes it: a bare name with a colon would mean a protocol."""
    return f"file:{path}"


def file_start(container: av.container.InputContainer) -> Fraction:
    """Return the time stamp of the file's start, in seconds."""
    return Fraction(container.start_time or 0, av.time_base)


def video_stream(container: av.container.InputContainer) -> Any:
    """Return the video stream to read and to copy, or None.

    A cover picture is none, whether the file marks it as a cover or not.
    """
    streams = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not stream.disposition & Disposition.attached_pic
    ]
    if len(streams) < 2:
        return next(iter(streams), None)
    best = container.streams.best("video")
    return best if best in streams else streams[0]


def audio_stream(container: av.container.InputContainer) -> Any:
    """Return the first audio stream that can be decoded, or None."""
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)


def required_stream(
    kind: Literal["video", "audio"], container: av.container.InputContainer, path: Path
) -> Any:
    """Return the video or the audio stream.

    Raises:
      MediaError: there is none, or none that can be decoded.
    """
    stream = video_stream(container) if kind == "video" else audio_stream(container)
    if stream is None:
        unknown = any(stream.codec_context is None for stream in getattr(container.streams, kind))
        message = f"{path}: has no {kind} stream{' of a known codec' if unknown else ''}"
        raise MediaError(message, "no_video" if kind == "video" else "no_audio")
    return stream


def frame_rate(stream) -> Fraction | None:
    """Return the frame rate of a video stream, or None if nothing tells it.

    FFmpeg has three estimates. Some files state a tick of their clock as one of them, which is far too high,
    so the lowest one is right.
    """
    estimates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
    return min((rate for rate in estimates if rate), default=None)


def check_picture_size(path: Path, width: int, height: int) -> None:
    """Check that a picture may be decoded.

    Raises:
      MediaError: it is larger than MAX_PIXELS.
    """
    if width * height > MAX_PIXELS:
        raise MediaError(f"{path}: its picture has {width}×{height} pixels, more than {MAX_PIXELS:,}")


def check_jump(path: Path, before: Fraction | float, after: Fraction | float) -> None:
    """Check that the time between two pictures, or two pieces of sound, may be filled.

    Args:
      path: the file, for the message.
      before, after: end of the first one and start of the next one, in seconds from the file's start.

    Raises:
      MediaError: it is longer than MAX_JUMP, forwards or backwards.
    """
    if abs(after - before) > MAX_JUMP:
        raise MediaError(
            f"{path}: its time stamps jump from {float(before):.2f} s to {float(after):.2f} s, "
            f"more than {MAX_JUMP:g} s"
        )


def picture_end(stream, time: Fraction, frame: av.VideoFrame) -> Fraction:
    """Return when a picture that is shown at `time` is over, in seconds from the file's start.

    The last picture of a transport stream has no duration; it gets the usual one.
    """
    if frame.duration:
        return time + frame.duration * stream.time_base
    return time + 1 / (frame_rate(stream) or Fraction(25))


def check_start(path: Path, start: float, over: Fraction) -> None:
    """Check that a part starts before the picture is over.

    Args:
      path: the file, for the message.
      start: start of the part, in seconds from the file's start.
      over: end of the last picture.

    Raises:
      MediaError: it starts then or later.
    """
    if start and start >= over:
        raise MediaError(f"{path}: its picture ends at {float(over):.2f} s, before the start at {start:g} s")


def demuxed(container: av.container.InputContainer, streams: Any, path: Path) -> Iterator[av.Packet]:
    """Yield the packets of one stream or several, and end where the rest of the file cannot be read."""
    try:
        for packet in container.demux(streams):
            # PyAV ends with empty ones.
            if packet.size:
                yield packet
    except IndexError:
        # In some formats a stream may appear in the middle of a file. PyAV then raises this after the last
        # packet of the streams that were there at the start.
        return
    except av.error.InvalidDataError as error:
        log.warning("%s: the end of the file is missing or damaged (%s)", path, error.strerror)


def decoded(
    packets: Iterable[av.Packet], stream: Any, path: Path, start: Fraction, *, needed: float | None = None
) -> Iterator[Any]:
    """Yield the frames of a stream, and end where all that follows is damaged.

    Args:
      packets: packets of the stream.
      stream: the stream.
      path: path of the file, for messages.
      start: time stamp of the file's start, in seconds.
      needed: damage from this time on ends the stream, whatever follows; None for no such time.

    Raises:
      MediaError: a packet is damaged, and a later one can be decoded or none could be.
    """
    fault, is_empty, end = None, True, _end_of(stream)
    for packet in itertools.chain(packets, [end]):
        try:
            frames = stream.decode(packet)
        except _DAMAGE:
            ticks = packet.dts if packet.pts is None else packet.pts
            time = None if ticks is None else ticks * packet.time_base - start
            if needed is not None and time is not None and time >= needed:
                break
            where = "" if time is None else f" near {float(time):.2f} s"
            fault = fault or MediaError(f"{path}: its {stream.type} is damaged{where}")
            continue
        if frames and fault and packet is not end:
            raise fault
        is_empty &= not frames
        yield from frames
    if fault and is_empty:
        raise fault
    if fault:
        log.warning("%s; it is read up to there", fault)


def _end_of(stream) -> av.Packet:
    """Return the packet for which a decoder returns what it still holds."""
    end = av.Packet()
    end.stream, end.time_base = stream, stream.time_base
    return end


def timed_frames(
    container, stream, path: Path, *, until: Fraction | float | None = None
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Decode a video stream, and yield each picture with its time in seconds from the file's start.

    Like FFmpeg's programs, trust a picture's presentation time, or else, where those go backwards more often,
    the decoding time of the packet that completed it. A .avi file states only decoding times. Its pictures
    are shown one after the other, the first one at the time of the first packet.

    Args:
      container: the open file.
      stream: its video stream.
      path: path of the file, for messages.
      until: do not decode what is shown from this time on. If the video continues after it, the last picture
        is yielded once more, with this time.

    Raises:
      MediaError: a picture is too large, or damaged.
    """
    check_picture_size(path, stream.width, stream.height)
    if not stream.codec_context.is_open:
        stream.thread_type = "AUTO"
        stream.codec_context.options = {**stream.codec_context.options, "max_pixels": str(MAX_PIXELS)}
    start, step = file_start(container), 1 / (frame_rate(stream) or Fraction(25))
    is_avi = has_decoding_times_only(container)
    packets = _PacketsBefore(demuxed(container, stream, path), start, until)
    if until is not None and is_avi:
        packets.end = until + _MAX_REORDERED * step
    chosen, delay, time, frame = _TrustedTimes(), None, -step, None
    for frame in decoded(packets, stream, path, start):
        if delay is None:
            delay = (frame.dts or 0) - (packets.first or 0) if is_avi else 0
        ticks = frame.dts if is_avi else chosen.next(frame.pts, frame.dts)
        time = time + step if ticks is None else (ticks - delay) * frame.time_base - start
        yield time, frame
    if until is not None and packets.go_on and frame is not None and time < until:
        yield Fraction(until), frame


def frames_from(
    container, stream, time: Fraction | float, path: Path, *, until: Fraction | float | None = None
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Decode a video stream as `timed_frames` does, but from shortly before a time on.

    Args:
      container: the open file.
      stream: its video stream.
      time: seconds from the file's start. The first picture is shown then or earlier; only if the file has
        none there, it is the stream's first one.
      path: path of the file, for messages.
      until: as for `timed_frames`.

    Raises:
      MediaError: a picture is too large, or damaged.
    """
    # Of an MPEG program stream, FFmpeg guesses most times from those before.
    if time <= SEEK_SECONDS or container.format.name == "mpeg":
        return timed_frames(container, stream, path, until=until)
    start = file_start(container)
    # Streams without an index may be entered where nothing can be decoded.
    with contextlib.suppress(av.error.FFmpegError, MediaError):
        container.seek(int((start + Fraction(time) - _SEEK_MARGIN) * av.time_base))
        frames = timed_frames(container, stream, path, until=until)
        for shown, frame in frames:
            if shown > time or (frame.pts is None and frame.dts is None):
                break
            # Pictures before it may need others that were not read.
            if frame.key_frame:
                return itertools.chain([(shown, frame)], frames)
    container.seek(int(start * av.time_base))
    return timed_frames(container, stream, path, until=until)


def has_decoding_times_only(container: av.container.InputContainer) -> bool:
    """Return whether FFmpeg guesses the presentation times of a file, because it states none."""
    return container.format.name == "avi"


class _PacketsBefore:
    """The packets of a stream that are decoded before a time, and always the first one.

    Attributes:
      end: the time, in seconds from the file's start; None for no end.
      first: decoding time of the first packet.
      go_on: whether more packets follow.
    """

    def __init__(self, packets: Iterator[av.Packet], start: Fraction, end: float | Fraction | None):
        self.end: float | Fraction | None = end
        self.first: int | None = None
        self.go_on = False
        self._packets, self._start = packets, start

    def __iter__(self) -> Iterator[av.Packet]:
        for index, packet in enumerate(self._packets):
            if index == 0:
                self.first = packet.dts
            elif self.end is not None and packet.dts is not None:
                self.go_on = packet.dts * packet.time_base - self._start >= self.end
                if self.go_on:
                    return
            yield packet


class _TrustedTimes:
    """Choice between two clocks, presentation and decoding times: the one that ran backwards less often."""

    def __init__(self):
        self._last: list[int | None] = [None, None]
        self._faults = [0, 0]

    def next(self, pts: int | None, dts: int | None) -> int | None:
        for clock, ticks in enumerate((pts, dts)):
            if ticks is None:
                continue
            last = self._last[clock]
            self._faults[clock] += last is not None and ticks <= last
            self._last[clock] = ticks
        if self._faults[0] > self._faults[1] and self._last[1] is not None:
            return dts
        return dts if pts is None else pts
