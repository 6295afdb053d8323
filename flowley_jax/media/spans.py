"""Measure when the streams of a file begin and end, without decoding them."""

import dataclasses
import statistics
from fractions import Fraction
from pathlib import Path

from flowley_jax.media.inputs import (
    audio_stream,
    demuxed,
    file_start,
    frame_rate,
    has_decoding_times_only,
    open_input,
    video_stream,
)

# Packets of sound whose stated lengths tell the usual one, and how much longer than it one may last.
_MANY = 3
_MUCH_LONGER = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """The time that a stream covers, in seconds from the file's start.

    Attributes:
      start: time of the first picture or sample.
      end: end of the last one.
      hole: longest time within the span that no packet covers. In sound, packets were lost; in a video of
        variable frame rate, a picture stays longer than its packet states.
    """

    start: float
    end: float
    hole: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spans:
    """The spans of the streams that the readers use; None for a stream that is missing or has no packet."""

    video: Span | None
    audio: Span | None

    @property
    def offset(self) -> float | None:
        """Seconds by which the sound starts after the picture; None without one of them."""
        if self.video is None or self.audio is None:
            return None
        return self.audio.start - self.video.start

    @property
    def overlap(self) -> float | None:
        """Seconds that both streams cover; None without one of them."""
        if self.video is None or self.audio is None:
            return None
        return max(0.0, min(self.video.end, self.audio.end) - max(self.video.start, self.audio.start))

    @property
    def end(self) -> float:
        """End of the stream that lasts longest; 0 without any."""
        return max((span.end for span in (self.video, self.audio) if span), default=0.0)


def stream_spans(path: str | Path, *, seconds: float | None = None) -> Spans:
    """Measure the streams of a file by the time stamps of their packets.

    Args:
      path: the file.
      seconds: stop where both streams are past this time, which saves reading the rest; None reads all.

    Raises:
      MediaError: the file is missing or is not a media file.
    """
    path = Path(path)
    with open_input(path) as container:
        start = file_start(container)
        streams = [stream for stream in (video_stream(container), audio_stream(container)) if stream]
        tracks = {
            stream.index: _Track(stream, start, has_pts=not has_decoding_times_only(container))
            for stream in streams
        }
        if tracks:
            for packet in demuxed(container, streams, path):
                tracks[packet.stream.index].add(packet)
                if seconds is not None and all(track.reached >= seconds for track in tracks.values()):
                    break
        spans = {track.type: track.span() for track in tracks.values()}
        return Spans(video=spans.get("video"), audio=spans.get("audio"))


class _Track:
    """Times of the packets of one stream."""

    def __init__(self, stream, file_start: Fraction, *, has_pts: bool):
        self.type = stream.type
        self.reached = Fraction(0)
        self._start = None
        if stream.start_time is not None:
            self._start = stream.start_time * stream.time_base - file_start
        self._file_start, self._has_pts = file_start, has_pts
        # How long a packet lasts that does not state it; 0 for unknown.
        self._step = _usual_length(stream)
        self._times: list[tuple[Fraction, Fraction]] = []

    def add(self, packet) -> None:
        if packet.is_discard:
            return
        ticks = packet.pts if self._has_pts and packet.pts is not None else packet.dts
        if ticks is not None:
            time = ticks * packet.time_base - self._file_start
        else:
            # Streams without a container have no time stamps: each packet follows the one before it.
            time = self._times[-1][1] if self._times else Fraction(0)
        self._times.append((time, time + ((packet.duration or 0) * packet.time_base or self._step)))
        self.reached = max(self.reached, time)

    def span(self) -> Span | None:
        if not self._times:
            return None
        times = sorted(self._times)
        start = times[0][0] if self._start is None else max(times[0][0], self._start)
        longest = self._longest_packet(times)
        end, hole = times[0][0], Fraction(0)
        for begin, finish in times:
            hole = max(hole, begin - end)
            end = max(end, begin + min(finish - begin, longest))
        return Span(start=float(start), end=float(end), hole=float(hole))

    def _longest_packet(self, times: list[tuple[Fraction, Fraction]]) -> Fraction:
        """Return the most that a packet can last; before a hole, .mp4 states the time up to the next one."""
        longest = max(finish - begin for begin, finish in times)
        if self.type == "video" or len(times) < _MANY:
            return longest
        usual = statistics.median(finish - begin for begin, finish in times)
        return longest if longest < _MUCH_LONGER * usual else usual


def _usual_length(stream) -> Fraction:
    if stream.type == "video":
        rate = frame_rate(stream)
        return 1 / rate if rate else Fraction(0)
    return Fraction(stream.codec_context.frame_size or 0, stream.rate or 1)
