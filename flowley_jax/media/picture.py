"""Take the picture of a video into another container, copied packet by packet, or else encoded."""

import io
import itertools
import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.error
import numpy as np
from av.bitstream import BitStreamFilterContext

from flowley_jax.errors import FlowleyError
from flowley_jax.media.inputs import (
    MediaError,
    check_jump,
    check_start,
    demuxed,
    file_start,
    frame_rate,
    frames_from,
    has_decoding_times_only,
    open_input,
    picture_end,
    read_errors,
    video_stream,
)

log = logging.getLogger(__name__)
# FFmpeg's names of the containers that a picture is taken into.
_FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}
# Codec and format of pixels that every browser plays.
_FOR_BROWSERS = ("h264", "yuv420p")
# Formats of moving images, which no player expects in a container with sound.
_ANIMATIONS = ("gif", "apng")
# Decoding times that run backwards by more seconds are damage; smaller steps are corrected.
_MAX_CORRECTION = 0.5
# Time base of an encoded picture, and its quality.
_CLOCK = Fraction(1, 90_000)
_CRF = "18"


def add_picture(
    container: av.container.OutputContainer,
    source: av.container.InputContainer,
    stream,
    path: Path,
    out_path: Path,
    *,
    start: float = 0.0,
    end: float | None = None,
    for_browsers: bool = False,
) -> Iterator[av.Packet]:
    """Add a stream for the picture of a video, and return an iterator of its packets.

    Args:
      container: the new container. Its header must be written between this call and the first packet.
      source: the open video.
      stream: its video stream.
      path: path of the video, for messages.
      out_path: path of the new file, whose suffix is one of MUX_SUFFIXES in any case.
      start, end: the part to take, in seconds from the file's start; None for the picture's end.
      for_browsers: whether to encode what is not H.264 in 4:2:0, which every browser plays.

    Returns:
      Packets with times that start at the file's start or at `start`, in the time base of the container.

    Raises:
      FlowleyError: the container cannot hold the picture, but another one can; or the picture ends before
        `start`.
    """
    if start or (end is not None and not _ends_by(source, end)):
        part = start, end
        return _encoded(container, source, stream, path, "only a part of it is taken", *part)
    suffix, codec = out_path.suffix.lower(), stream.codec.canonical_name
    holders = [] if codec in _ANIMATIONS else [other for other in _FORMATS if _holds(other, stream)]
    packets = _Packets(source, stream, path, hides_start=suffix != ".mkv")
    if for_browsers and (codec, stream.codec_context.pix_fmt) != _FOR_BROWSERS:
        reason = f"some browsers do not play its codec, {codec} in {stream.codec_context.pix_fmt}"
    elif not holders:
        reason = f"no container for video and sound holds its codec, {codec}"
    elif has_decoding_times_only(source) and stream.codec_context.has_b_frames:
        reason = "its container does not tell when each picture is shown"
    elif not packets.have_times:
        reason = "its packets have no time stamps"
    elif packets.run_backwards:
        reason = "its time stamps run backwards"
    elif packets.hidden_are_needed:
        reason = f"{suffix} would show pictures that its edit list hides"
    elif suffix in holders:
        return _copied(source, stream, _add_copy(container, stream), path, packets.removed)
    else:
        raise FlowleyError(f"{out_path}: cannot hold {path}'s {codec} video; {', '.join(holders)} can")
    return _encoded(container, source, stream, path, reason)


def check_picture(path: Path, out_path: Path, *, start: float = 0.0, end: float | None = None) -> None:
    """Check that `mux_audio` can take the picture of a video into a file; nothing is written.

    Args:
      path: the video.
      out_path: the file, whose suffix is one of MUX_SUFFIXES in any case.
      start, end: the part to take, as for `add_picture`.

    Raises:
      FlowleyError: the video cannot be read, its picture ends before `start`, or the container cannot hold
        the picture.
    """
    name = _FORMATS[out_path.suffix.lower()]
    with open_input(path) as source, av.open(io.BytesIO(), "w", format=name) as container:
        stream = video_stream(source)
        if stream is None:
            raise MediaError(f"{path}: has no video stream", "no_video")
        add_picture(container, source, stream, path, out_path, start=start, end=end)


def _ends_by(source: av.container.InputContainer, seconds: float) -> bool:
    """Return whether the whole file is over at a time; False if the file does not state its length."""
    return source.duration is not None and source.duration / av.time_base <= seconds


class _Packets:
    """Facts about the packets of a picture that decide whether they can be copied.

    The edit list of a .mp4 or .mov file may hide pictures: one that was cut without encoding begins at a key
    frame before the cut, so that the pictures after the cut can be decoded.

    Attributes:
      removed: numbers, in the order of the file, of hidden pictures that need not be copied.
      hidden_are_needed: whether other pictures need the hidden ones, and the new container cannot hide them.
      have_times: whether any packet has a decoding time.
      run_backwards: whether decoding times run backwards by more than can be corrected.
    """

    def __init__(self, source, stream, path: Path, *, hides_start: bool):
        """Read the packets.

        Args:
          source: the open video.
          stream: its video stream.
          path: path of the video, for messages.
          hides_start: whether the new container can hide pictures before its start.
        """
        self.removed: set[int] = set()
        self.hidden_are_needed = False
        with open_input(path) as again:
            packets = [
                (packet.is_discard, packet.is_keyframe, packet.pts, packet.dts)
                for packet in _packets(again, again.streams[stream.index], path)
            ]
        shown = [pts for hidden, _, pts, _ in packets if not hidden and pts is not None]
        first_shown = min(shown, default=0)
        next_is_key = True
        for index, (hidden, is_key, pts, _) in reversed(list(enumerate(packets))):
            if not hidden:
                next_is_key = is_key
            elif hides_start and pts is not None and pts < first_shown:
                continue
            elif next_is_key:
                self.removed.add(index)
            else:
                self.hidden_are_needed = True
        times = [dts * stream.time_base for _, _, _, dts in packets if dts is not None]
        steps_back = (before - after for before, after in itertools.pairwise(times))
        self.have_times = bool(times)
        self.run_backwards = max(steps_back, default=0) > _MAX_CORRECTION


def _holds(suffix: str, stream) -> bool:
    """Return whether a container can hold a stream."""
    try:
        # For some codecs, FFmpeg refuses only to write the header.
        with av.open(io.BytesIO(), "w", format=_FORMATS[suffix]) as container:
            _add_copy(container, stream)
            container.start_encoding()
    except (ValueError, av.error.FFmpegError):
        return False
    return True


def _add_copy(container: av.container.OutputContainer, stream):
    """Add a stream for the packets of another one.

    Raises:
      ValueError: the container cannot hold the codec.
    """
    try:
        # An opaque stream needs no encoder of the codec.
        copied = container.add_stream_from_template(stream, opaque=True)
    except ValueError:
        if container.format.name != "matroska":
            raise
        # Matroska holds the codecs of .avi and .wmv by their four letters, which PyAV does not know. So the
        # parameters of the stream replace those of another codec.
        copied = container.add_mux_stream("h264", rate=frame_rate(stream))
        BitStreamFilterContext("null", stream, copied)
        return copied
    copied.codec_context.framerate = frame_rate(stream) or Fraction(0)
    if stream.codec.canonical_name == "hevc" and container.format.name != "matroska":
        # Apple's players refuse FFmpeg's default, hev1.
        copied.codec_context.codec_tag = "hvc1"
    return copied


def _copied(source, stream, copied, path: Path, removed: set[int]) -> Iterator[av.Packet]:
    """Yield the packets of one stream for another, in whose time base they increase strictly."""
    start, base, has_pts = file_start(source), copied.time_base, not has_decoding_times_only(source)
    latest: int | None = None
    corrected = 0
    for index, packet in enumerate(_with_decoding_times(source, stream, path)):
        if index in removed:
            continue
        assert packet.dts is not None
        dts = round((packet.dts * packet.time_base - start) / base)
        pts = dts
        if has_pts and packet.pts is not None:
            pts = round((packet.pts * packet.time_base - start) / base)
        if latest is not None and dts <= latest:
            corrected += 1
            dts = latest + 1
        packet.duration = round((packet.duration or 0) * packet.time_base / base)
        packet.dts, packet.pts, packet.time_base, packet.stream = dts, max(dts, pts), base, copied
        latest = dts
        yield packet
    if corrected:
        log.info("%s: moved %d time stamps of its picture, which did not increase", path, corrected)


def _with_decoding_times(source, stream, path: Path) -> Iterator[av.Packet]:
    """Yield a stream's packets, each with a decoding time.

    The first packets of Matroska files lack one; they get times just before the first one that has it.
    """
    early: list[av.Packet] | None = []
    latest = 0
    for packet in _packets(source, stream, path):
        step = round(1 / ((frame_rate(stream) or 25) * packet.time_base))
        if early is None:
            packet.dts = latest + step if packet.dts is None else packet.dts
        elif packet.dts is None:
            early.append(packet)
            continue
        else:
            for index, untimed in enumerate(early):
                untimed.dts = packet.dts - (len(early) - index) * step
            yield from early
            early = None
        latest = packet.dts
        yield packet


def _packets(source, stream, path: Path) -> Iterator[av.Packet]:
    # The errors of a reader, which must not be taken for those of the writer.
    with read_errors(path):
        yield from demuxed(source, stream, path)


def _encoded(
    container, source, stream, path: Path, reason: str, start: float = 0.0, end: float | None = None
) -> Iterator[av.Packet]:
    """Add a stream of H.264, and return an iterator of its packets."""
    video = container.add_stream("libx264", rate=frame_rate(stream) or 25)
    frames = _upright_frames(source, stream, path, Fraction(start), None if end is None else Fraction(end))
    time, first = next(frames, (Fraction(0), None))
    if first is None:
        raise MediaError(f"{path}: its video stream has no frame")
    # H.264 with colours at half the resolution needs even sizes.
    video.height, video.width = (max(2, length // 2 * 2) for length in first.shape[:2])
    video.pix_fmt, video.codec_context.time_base = "yuv420p", _CLOCK
    video.options = {"crf": _CRF, "preset": "veryfast"}
    return _encode(video, itertools.chain([(time, first)], frames), path, reason)


def _encode(video, frames, path: Path, reason: str) -> Iterator[av.Packet]:
    # Here and not earlier: `check_picture` takes no packet.
    log.info("%s: its picture is encoded in H.264 instead of copied, because %s", path, reason)
    latest = -1
    for time, image in frames:
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame = frame.reformat(width=video.width, height=video.height, format="yuv420p")
        latest = max(latest + 1, round(time / _CLOCK))
        frame.pts, frame.time_base = latest, _CLOCK
        yield from video.encode(frame)
    yield from video.encode(None)


def _upright_frames(
    source, stream, path: Path, start: Fraction, end: Fraction | None
) -> Iterator[tuple[Fraction, np.ndarray]]:
    """Yield the pictures shown from `start` until `end`, each with the time after `start`."""
    waiting, shown, step = None, Fraction(0), 1 / (frame_rate(stream) or Fraction(25))
    with read_errors(path):
        for time, frame in frames_from(source, stream, start, path, until=end):
            if waiting or time > start:
                check_jump(path, shown, time if end is None else min(time, end))
            if time < shown:
                continue
            if waiting and time > start:
                yield max(Fraction(0), shown - start), _upright(waiting)
            if end is not None and time >= end:
                # The encoder ignores how long a picture stays, so one that stays until the end is repeated.
                if waiting and end - max(shown, start) > 2 * step:
                    yield end - step - start, _upright(waiting)
                return
            waiting, shown = frame, time
        if waiting:
            check_start(path, float(start), picture_end(stream, shown, waiting))
            yield max(Fraction(0), shown - start), _upright(waiting)


def _upright(frame: av.VideoFrame) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
