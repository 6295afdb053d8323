"""Clips with white flashes and clicks at known times, in many containers, and detectors that find them.

Film time is the time of the scene that a clip records. A file starts at the first picture or sound that it
holds, and readers count from there: see `origin_of`.
"""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# Seconds that a flash lasts.
FLASH = 0.12
# Seconds, Hz, and seconds until a click is e times quieter.
_CLICK, _PITCH, _DECAY = 0.012, 1800.0, 0.0025
_HEIGHT, _WIDTH = 48, 64
# Encoders whose clock is the frame rate; the others count in ticks of 1/90,000 s.
_COARSE = ("mpeg4", "mpeg2video", "wmv2", "mjpeg", "gif", "apng")
_QUIET = {"libx265": {"x265-params": "log-level=none"}, "libvpx": {"deadline": "realtime", "cpu-used": "8"}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlashClip:
    """A clip; all times are film times in seconds.

    Attributes:
      video_codec, audio_codec: names of FFmpeg's encoders; no sound with None.
      fps: frames per second.
      sample_rate: Hz.
      layout: "mono" or "stereo".
      seconds: end of the film.
      flashes, clicks: times at which they begin.
      video_start, audio_start: time of the first picture and of the first sample.
      hole: beginning and end of a part of the sound whose packets are missing; None for none.
      dropped: numbers, from film time 0, of pictures that are missing; the one before is shown longer.
    """

    video_codec: str = "libx264"
    audio_codec: str | None = "aac"
    fps: int = 25
    sample_rate: int = 16_000
    layout: str = "mono"
    seconds: float = 2.0
    flashes: Sequence[float] = ()
    clicks: Sequence[float] = ()
    video_start: float = 0.0
    audio_start: float = 0.0
    hole: tuple[float, float] | None = None
    dropped: Sequence[int] = ()


def write_flash_clip(path: Path, clip: FlashClip, *, options: dict[str, str] | None = None) -> None:
    """Write a clip; the suffix of the path chooses the container.

    Args:
      path: file to write.
      clip: the clip.
      options: options of the video encoder.
    """
    with av.open(f"file:{path}", "w") as container:
        streams = [_video(container, clip, options or {})]
        if clip.audio_codec:
            streams.append(_audio(container, clip))
        packets = [packet for encode in streams for packet in encode() if not _is_lost(packet, clip)]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)


def origin_of(path: Path, clip: FlashClip) -> float:
    """Return the film time of a file's start, by the time stamps of the file and of its last picture.

    In .mpg, by its first one: of the later ones, FFmpeg guesses some a picture too late.
    """
    with av.open(f"file:{path}") as container:
        start = Fraction(container.start_time or 0, av.time_base)
        packets = container.demux(container.streams.video[0])
        times = [packet.pts * packet.time_base for packet in packets if packet.size]
    if path.suffix == ".mpg":
        return clip.video_start - float(min(times) - start)
    last = max(times)
    return clip.video_start + (_count(clip) - 1) / clip.fps - float(last - start)


def flash_times(frames: np.ndarray, fps: float) -> list[float]:
    """Return when flashes begin in frames (T, H, W, 3), in seconds from the first one."""
    white = np.concatenate([[False], frames.reshape(len(frames), -1).mean(axis=1) > 128])
    return [float(index / fps) for index in np.flatnonzero(white[1:] & ~white[:-1])]


def click_times(wave: np.ndarray, sample_rate: int) -> list[float]:
    """Return when clicks begin in a wave (N,), in seconds from its start."""
    template = click(sample_rate)
    likeness = np.abs(np.convolve(wave, template[::-1], mode="full"))[len(template) - 1 :]
    loud, times = 0.4 * likeness.max(initial=0.0), []
    while likeness.max(initial=0.0) > max(loud, 1e-3):
        index = int(likeness.argmax())
        times.append(index / sample_rate)
        likeness[max(0, index - sample_rate // 10) : index + sample_rate // 10] = 0.0
    return sorted(times)


def click(sample_rate: int) -> np.ndarray:
    """Return a click, float32."""
    time = np.arange(round(_CLICK * sample_rate)) / sample_rate
    return (0.8 * np.sin(2 * np.pi * _PITCH * time) * np.exp(-time / _DECAY)).astype(np.float32)


def _count(clip: FlashClip) -> int:
    return round((clip.seconds - clip.video_start) * clip.fps)


def _is_lost(packet: av.Packet, clip: FlashClip) -> bool:
    time = float(packet.pts * packet.time_base)
    return packet.stream.type == "audio" and clip.hole is not None and clip.hole[0] <= time < clip.hole[1]


def _video(container, clip: FlashClip, options: dict[str, str]):
    stream = container.add_stream(clip.video_codec, rate=clip.fps)
    stream.height, stream.width = _HEIGHT, _WIDTH
    stream.pix_fmt = {"gif": "rgb8", "apng": "rgb24", "mjpeg": "yuvj420p"}.get(clip.video_codec, "yuv420p")
    base = Fraction(1, clip.fps if clip.video_codec in _COARSE else 90_000)
    stream.codec_context.time_base = base
    stream.options = {**_QUIET.get(clip.video_codec, {}), **options}

    def encode():
        for index in range(_count(clip)):
            time = clip.video_start + index / clip.fps
            if round(time * clip.fps) in clip.dropped:
                continue
            is_white = any(flash - 1e-6 <= time < flash + FLASH - 1e-6 for flash in clip.flashes)
            image = np.full((_HEIGHT, _WIDTH, 3), 235 if is_white else 20, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(time / base), base
            yield from stream.encode(frame)
        yield from stream.encode(None)

    return encode


def _audio(container, clip: FlashClip):
    rate = clip.sample_rate
    stream = container.add_stream(clip.audio_codec, rate=rate, layout=clip.layout)
    wave = np.zeros(round((clip.seconds - clip.audio_start) * rate), np.float32)
    for time in clip.clicks:
        begin = round((time - clip.audio_start) * rate)
        wave[begin : begin + len(click(rate))] = click(rate)[: max(0, len(wave) - begin)]
    channels = {"mono": 1, "stereo": 2}[clip.layout]
    resampler = av.AudioResampler(format=stream.codec_context.format, layout=clip.layout, rate=rate)

    def encode():
        for begin in range(0, len(wave), 1024):
            planes = np.repeat(wave[None, begin : begin + 1024], channels, axis=0)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=clip.layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = begin + round(clip.audio_start * rate)
            for converted in resampler.resample(frame):
                yield from stream.encode(converted)
        yield from stream.encode(None)

    return encode
