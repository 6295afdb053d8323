"""Read video and sound with PyAV, at the rates and sizes that the features need.

Every function counts time from the file's start and goes by the file's time stamps: a stream that begins
late is preceded by its first picture or by silence, and lost packets leave silence.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soxr
from PIL import Image

from flowley_jax.media.inputs import (
    SEEK_SECONDS,
    MediaError,
    audio_stream,
    check_jump,
    check_picture_size,
    check_start,
    decoded,
    demuxed,
    file_start,
    frame_rate,
    frames_from,
    open_input,
    picture_end,
    required_stream,
    timed_frames,
    video_stream,
)
from flowley_jax.media.spans import stream_spans
from flowley_jax.media.timeline import Piece, place

SILENT_PEAK = 1e-6
NORMALISED_PEAK = 0.95
# Sound to read past the end, so that the resampler's filter has all its input. The filter is much shorter.
_RESAMPLER_MARGIN = 1.0
# Limits of what is held in memory: bytes of the returned frames, and seconds of sound.
_MAX_FRAME_BYTES = 8 * 2**30
_MAX_SOUND_SECONDS = 4 * 3600.0
# Starts of parts are rounded to fractions with denominators up to this one.
_START_DENOMINATOR = 1_000_000
_SAMPLE_RATES = (1_000, 768_000)
# Full scale is 1; files of floats may hold more, but not as much as this.
_MAX_SAMPLE = 1e6
# Channels cancel each other if their mean has less than this share of the energy that it would have if they
# were unrelated. A lossy codec leaves a residue of channels in opposite phase.
_CANCELLED = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """Streams of a media file; fields of a stream that the file lacks are None.

    Attributes:
      duration: seconds, as the header states it; measured from the packets if it does not.
      video_fps: mean frame rate in frames per second.
      width, height: size of the picture in pixels, before rotation.
      has_audio: whether there is an audio stream.
      sample_rate: sample rate of the sound in Hz, as the header states it.
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
    path = Path(path)
    with open_input(path) as container:
        video, audio = video_stream(container), audio_stream(container)
        rate = frame_rate(video) if video else None
        return MediaInfo(
            duration=_duration(path, container),
            video_fps=float(rate) if rate else None,
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
      MediaError: the file is missing, unreadable, or has no video stream or no frame; without `size`, its
        pictures have several sizes; or its frames need more memory than is allowed.
    """
    frames: list[np.ndarray] = []
    for image in _images(Path(path), fps=fps, size=size, start=0.0, end=seconds):
        if (len(frames) + 1) * image.nbytes > _MAX_FRAME_BYTES:
            raise MediaError(
                f"{path}: its frames need more than {_MAX_FRAME_BYTES / 2**30:g} GiB of memory; "
                "cut it into parts"
            )
        frames.append(image)
    return np.stack(frames)


def frame_blocks(
    path: str | Path,
    *,
    fps: float,
    size: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    block: int = 256,
) -> Iterator[np.ndarray]:
    """Yield the frames of `read_frames`, or a part of them, in blocks of which one is in memory at a time.

    Frame n is the one shown at `start` + n / `fps`, so a start at a multiple of 1 / `fps` gives the frames
    that `read_frames` gives from there on.

    Args:
      fps: frames per second.
      size: as for `read_frames`.
      start: beginning of the part, in seconds from the file's start.
      end: end of the part; None for the picture's end, which is also the end of a part that is longer.
      block: number of frames of every block but the last one, which may have fewer.

    Yields:
      uint8 (at most `block`, H, W, 3), RGB.

    Raises:
      MediaError: the file is missing, unreadable, or has no video stream or no frame; its picture ends before
        `start`; or, without `size`, its pictures have several sizes.
    """
    images = _images(Path(path), fps=fps, size=size, start=start, end=end)
    while frames := list(itertools.islice(images, block)):
        yield np.stack(frames)


def frame_count(path: str | Path, *, fps: float, start: float = 0.0, end: float | None = None) -> int:
    """Return the number of frames that `frame_blocks` yields, as the file's header tells it.

    No picture is decoded. A file that is damaged has fewer frames; so may one whose header states no length
    of the picture, if its sound lasts longer.

    Args:
      fps, start, end: as for `frame_blocks`.

    Raises:
      MediaError: the file is missing, unreadable, or has no video stream; or its picture ends before `start`.
    """
    path = Path(path)
    with open_input(path) as container:
        stream = required_stream("video", container, path)
        over = Fraction(_duration(path, container))
        if stream.duration:
            ticks = (stream.start_time or 0) + stream.duration
            exact = ticks * stream.time_base - file_start(container)
            over = round(exact / stream.time_base) * stream.time_base
    check_start(path, start, over)
    rate = Fraction(fps).limit_denominator(1001)
    begin = Fraction(start).limit_denominator(_START_DENOMINATOR)
    frames = max(1, math.floor((over - begin) * rate + Fraction(1, 2)))
    return frames if end is None else min(frames, max(1, round((end - start) * fps)))


def read_frames_at(path: str | Path, shares: Sequence[float]) -> list[np.ndarray]:
    """Return the first frame at or after each of several instants, turned upright.

    Args:
      shares: instants in ascending order, as fractions of the file's duration, which `probe` returns.

    Returns:
      One uint8 (H, W, 3) RGB array per instant. Instants after the last frame have none.

    Raises:
      MediaError: the file is missing, unreadable or has no video stream.
    """
    path = Path(path)
    with open_input(path) as container:
        stream = required_stream("video", container, path)
        duration = _duration(path, container)
        frames = list(_frames_from(container, stream, [share * duration for share in shares], path))
        return [np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) for frame in frames]


def read_audio(
    path: str | Path, *, sample_rate: int, seconds: float | None = None, normalize_peak: bool = False
) -> np.ndarray:
    """Return the sound in one channel: average the channels, normalise the peak, resample, cut.

    Channels that cancel each other are not averaged: the louder one is returned.

    Args:
      sample_rate: Hz. The resampler is soxr's high-quality one; the published features were made with a
        windowed sinc filter with different parameters.
      seconds: return at most this much; a shorter sound stays shorter.
      normalize_peak: scale the sound so that the peak of the whole track is 0.95.

    Returns:
      float32 (N,).

    Raises:
      MediaError: the file is missing or unreadable, has no audio stream or no sample, or samples that are not
        finite, or, with `normalize_peak`, is silent.
    """
    path = Path(path)
    # Normalisation needs the peak of the whole track; otherwise the rest of the track is not decoded.
    wave, rate = _read_track(path, seconds, whole=normalize_peak)
    if normalize_peak:
        peak = float(np.abs(wave).max())
        if peak < SILENT_PEAK:
            raise MediaError(f"{path}: is silent (peak {peak:.1e})", "silent")
        wave = wave * (NORMALISED_PEAK / peak)
    if rate != sample_rate:
        wave = soxr.resample(wave, rate, sample_rate)
    wave = wave if seconds is None else wave[: round(seconds * sample_rate)]
    return np.ascontiguousarray(wave, np.float32)


def read_channels(path: str | Path) -> tuple[np.ndarray, int]:
    """Return the sound of a file as it is stored, from the file's start on.

    Returns:
      float32 (channels, N), where full scale is 1, and the sample rate in Hz.

    Raises:
      MediaError: the file is missing or unreadable, has no audio stream or no sample, samples that are not
        finite, or a number of channels that changes.
    """
    path = Path(path)
    with open_input(path) as container:
        stream = required_stream("audio", container, path)
        pieces = list(_channels(container, stream, path, None, whole=True))
    if not pieces:
        raise MediaError(f"{path}: its audio stream has no sample", "unreadable")
    counts = {len(planes) for _, _, planes in pieces}
    if len(counts) > 1:
        raise MediaError(f"{path}: its sound changes from {min(counts)} to {max(counts)} channels")
    waves = [
        place([Piece(time, rate, planes[channel]) for time, rate, planes in pieces])
        for channel in range(counts.pop())
    ]
    return np.stack(waves), pieces[0][1]


def _duration(path: Path, container) -> float:
    """Return the duration that the header states, or else the one that the packets show."""
    return container.duration / av.time_base if container.duration else stream_spans(path).end


def _read_track(path: Path, seconds: float | None, *, whole: bool) -> tuple[np.ndarray, int]:
    """Return the sound of a file in one channel, and its sample rate.

    Args:
      path: the file.
      seconds: length from the file's start that must not be damaged, None for all; a little more is returned.
      whole: whether to return what follows, too.
    """
    pieces, cancelled = _mono_pieces(path, seconds, whole=whole)
    if cancelled is not None:
        pieces, _ = _mono_pieces(path, seconds, whole=whole, channel=cancelled)
    return place(pieces), pieces[0].rate


def _mono_pieces(
    path: Path, seconds: float | None, *, whole: bool, channel: int | None = None
) -> tuple[list[Piece], int | None]:
    """Return the mean of the channels, or one of them, in pieces; and the loudest channel if they cancel."""
    pieces, energies, mean_energy, expected = [], np.zeros(0), 0.0, 0.0
    with open_input(path) as container:
        stream = required_stream("audio", container, path)
        for time, rate, planes in _channels(container, stream, path, seconds, whole=whole):
            count = len(planes)
            wave = planes.mean(axis=0) if channel is None else planes[min(channel, count - 1)]
            pieces.append(Piece(time, rate, wave))
            energy = np.square(planes, dtype=np.float64).sum(axis=1)
            energies = np.pad(energies, (0, max(0, count - len(energies))))
            energies[:count] += energy
            mean_energy += float(np.square(wave, dtype=np.float64).sum())
            expected += float(energy.sum()) / count**2
    if not pieces:
        raise MediaError(f"{path}: its audio stream has no sample", "unreadable")
    cancelled = mean_energy < _CANCELLED * expected
    return pieces, int(energies.argmax()) if cancelled else None


def _channels(
    container, stream, path: Path, seconds: float | None, *, whole: bool
) -> Iterator[tuple[float | None, int, np.ndarray]]:
    """Decode sound; yield time, sample rate and (channels, N) float32 samples."""
    limit = None if seconds is None or whole else seconds + _RESAMPLER_MARGIN
    start, resampler, form = file_start(container), None, None
    end = 0.0
    for frame in decoded(demuxed(container, stream, path), stream, path, start, needed=seconds):
        time = None if frame.pts is None else float(frame.pts * frame.time_base - start)
        if limit is not None and (end if time is None else time) >= limit:
            # The sound continues, so up to the limit there is silence at least.
            yield limit, frame.sample_rate, np.zeros((1, 0), np.float32)
            return
        # A resampler takes frames of one kind only.
        if resampler is None or form != (frame.format.name, frame.layout.name, frame.sample_rate):
            _check_rate(path, frame.sample_rate)
            form = (frame.format.name, frame.layout.name, frame.sample_rate)
            resampler = av.AudioResampler(format="fltp")
        check_jump(path, end, end if time is None else time)
        for converted in resampler.resample(frame):
            planes = converted.to_ndarray()
            # NaN compares as false.
            if not np.abs(planes).max(initial=0.0) <= _MAX_SAMPLE:
                raise MediaError(
                    f"{path}: its sound has samples that are NaN, infinite or above {_MAX_SAMPLE:g}"
                )
            yield time, frame.sample_rate, planes
        end = (end if time is None else time) + frame.samples / frame.sample_rate
        if end > _MAX_SOUND_SECONDS:
            raise MediaError(f"{path}: has more than {_MAX_SOUND_SECONDS / 3600:g} hours of sound")


def _check_rate(path: Path, rate: int) -> None:
    low, high = _SAMPLE_RATES
    if not low <= rate <= high:
        raise MediaError(f"{path}: has {rate} samples per second, expected {low:,} to {high:,}")


def _images(
    path: Path, *, fps: float, size: int | None, start: float, end: float | None
) -> Iterator[np.ndarray]:
    """Yield at least one upright frame (H, W, 3); see `frame_blocks` for the arguments and errors."""
    limit, shape = None if end is None else max(1, round((end - start) * fps)), None
    with open_input(path) as container:
        stream = required_stream("video", container, path)
        for frame, rotation in itertools.islice(_at_rate(container, stream, fps, path, start, end), limit):
            image = np.rot90(frame.to_ndarray(format="rgb24"), rotation // 90)
            image = _resized(image, size) if size else image
            _check_shape(path, shape or image.shape, image.shape)
            shape = image.shape
            yield image


def _check_shape(path: Path, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    if before != after:
        (height, width), (new_height, new_width) = before[:2], after[:2]
        raise MediaError(
            f"{path}: its picture changes from {width}×{height} to {new_width}×{new_height} pixels"
        )


def _at_rate(
    container, stream, fps: float, path: Path, start: float, end: float | None
) -> Iterator[tuple[av.VideoFrame, int]]:
    """Yield frames at a rate, each with the degrees counterclockwise that turn it upright.

    Like FFmpeg's `fps` filter, frame n is the last picture whose time, in frames, rounds to n or less; halves
    are rounded up, and a late first picture is repeated. That filter has no exact start.

    The caller takes no frame after `end`, so a longer jump of the time stamps does no harm.
    """
    rate = Fraction(fps).limit_denominator(1001)
    # Multiples of 1 / rate, which a float may miss.
    begin = Fraction(start).limit_denominator(_START_DENOMINATOR)

    def number(time: Fraction) -> int:
        # The file's start is rounded to microseconds, which the stream's clock takes back.
        exact = round(time / stream.time_base) * stream.time_base
        return math.floor((exact - begin) * rate + Fraction(1, 2))

    count, picture, shown, over = 0, None, Fraction(0), Fraction(0)
    # The header of a file that was cut short may lack the stream's parameters.
    frames = frames_from(container, stream, begin, path, until=end) if stream.format else iter(())
    for time, frame in frames:
        check_picture_size(path, frame.width, frame.height)
        if picture or time > begin:
            check_jump(path, shown, time if end is None else min(time, end))
        if time < shown:
            # An overlap: the pictures before it are kept.
            continue
        while picture and count < number(time):
            yield picture
            count += 1
        picture, shown = (frame, frame.rotation), time
        over = picture_end(stream, time, frame)
    if picture:
        check_start(path, start, over)
    # A part that begins in the last half of a frame has that frame.
    least = 1 if start else 0
    while picture and count < max(least, number(over)):
        yield picture
        count += 1
    if not count:
        raise MediaError(f"{path}: its video stream has no frame", "unreadable")


def _frames_from(container, stream, times: Sequence[float], path: Path) -> Iterator[av.VideoFrame]:
    """Yield the first frame at or after each of several ascending times in seconds from the file's start."""
    frames, reached = timed_frames(container, stream, path), 0.0
    for time in times:
        if time - reached > SEEK_SECONDS:
            frames = frames_from(container, stream, time, path)
        frame = next((frame for shown, frame in frames if shown >= time), None)
        if frame is None:
            return
        yield frame
        reached = time


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
