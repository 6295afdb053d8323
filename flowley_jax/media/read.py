"""Read video and sound with PyAV, at the rates and sizes that the features need.

Every function counts time from the file's start and goes by the file's time stamps: a stream that begins
late is preceded by its first picture or by silence, and lost packets leave silence.
"""

import dataclasses
import fractions
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import av.error
import av.filter
import numpy as np
import soxr
from PIL import Image

from flowley_jax.media.inputs import (
    MediaError,
    audio_stream,
    check_jump,
    check_picture_size,
    decoded,
    demuxed,
    file_start,
    frame_rate,
    open_input,
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
# If the next frame is nearer than this, decoding up to it is faster than a seek to the key frame before it.
_SEEK_SECONDS = 15.0
# Limits of what is held in memory: bytes of the returned frames, and seconds of sound.
_MAX_FRAME_BYTES = 8 * 2**30
_MAX_SOUND_SECONDS = 4 * 3600.0
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
    path = Path(path)
    limit = None if seconds is None else round(seconds * fps)
    frames: list[np.ndarray] = []
    with open_input(path) as container:
        stream = required_stream("video", container, path)
        for frame, rotation in _at_rate(container, stream, fps, path, seconds):
            image = np.rot90(frame.to_ndarray(format="rgb24"), rotation // 90)
            image = _resized(image, size) if size else image
            _check_frames(path, frames, image)
            frames.append(image)
            if limit is not None and len(frames) >= limit:
                break
    if not frames:
        raise MediaError(f"{path}: its video stream has no frame", "unreadable")
    return np.stack(frames)


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


def _check_frames(path: Path, frames: Sequence[np.ndarray], image: np.ndarray) -> None:
    """Check that another frame fits those before it, and that all fit into memory."""
    if frames and image.shape != frames[0].shape:
        (height, width), (new_height, new_width) = frames[0].shape[:2], image.shape[:2]
        raise MediaError(
            f"{path}: its picture changes from {width}×{height} to {new_width}×{new_height} pixels"
        )
    if (len(frames) + 1) * image.nbytes > _MAX_FRAME_BYTES:
        raise MediaError(
            f"{path}: its frames need more than {_MAX_FRAME_BYTES / 2**30:g} GiB of memory; cut it into parts"
        )


def _at_rate(
    container, stream, fps: float, path: Path, seconds: float | None
) -> Iterator[tuple[av.VideoFrame, int]]:
    """Yield frames at a rate, each with the degrees counterclockwise that turn it upright.

    The caller takes no frame after `seconds`, so a longer jump of the time stamps does no harm.
    """
    if stream.format is None:
        # The header of a file that was cut short may lack the stream's parameters.
        return
    graph = av.filter.Graph()
    source = graph.add_buffer(template=stream)
    exact_fps = fractions.Fraction(fps).limit_denominator(1001)
    # From the file's start on: a late picture is repeated, an early one cut.
    rate = graph.add("fps", f"fps={exact_fps}:start_time=0")
    sink = graph.add("buffersink")
    source.link_to(rate)
    rate.link_to(sink)
    graph.configure()
    rotation, shown = None, fractions.Fraction(0)
    for time, frame in timed_frames(container, stream, path, until=seconds):
        check_picture_size(path, frame.width, frame.height)
        check_jump(path, shown, time if seconds is None else min(time, seconds))
        if time < shown:
            # An overlap: the pictures before it are kept.
            continue
        rotation, shown = frame.rotation, time
        frame.pts = round(time / stream.time_base)
        # Otherwise the last picture of a transport stream would have no duration, and be left out.
        frame.duration = frame.duration or round(1 / ((frame_rate(stream) or 25) * stream.time_base))
        source.push(frame)
        yield from ((out, rotation) for out in _pull(sink))
    if rotation is not None:
        source.push(None)
        yield from ((out, rotation) for out in _pull(sink))


def _frames_from(container, stream, times: Sequence[float], path: Path) -> Iterator[av.VideoFrame]:
    """Yield the first frame at or after each of several ascending times in seconds from the file's start."""
    frames, reached = timed_frames(container, stream, path), 0.0
    for time in times:
        if time - reached > _SEEK_SECONDS:
            frames = _frames_before(container, stream, time, path)
        frame = next((frame for shown, frame in frames if shown >= time), None)
        if frame is None:
            return
        yield frame
        reached = time


def _frames_before(
    container, stream, time: float, path: Path
) -> Iterator[tuple[fractions.Fraction, av.VideoFrame]]:
    """Seek, and return timed frames that begin no later than `time`."""
    start = file_start(container)
    for target in (start + fractions.Fraction(time), start):
        container.seek(int(target * av.time_base))
        frames = timed_frames(container, stream, path)
        first = next(frames, None)
        # Streams without an index may be entered after the key frame.
        if first and (first[0] <= time or target == start):
            return itertools.chain([first], frames)
    return iter(())


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
