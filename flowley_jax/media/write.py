"""Writing video and sound with PyAV; a file appears whole or not at all."""

import contextlib
import fractions
from collections.abc import Iterator
from pathlib import Path

import av
import av.container
import av.error
import numpy as np
import soundfile

from flowley_jax.errors import FlowleyError
from flowley_jax.whole_files import replacing

AUDIO_SUFFIXES = (".wav", ".flac")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")
AAC_FRAME = 1024


def write_video(
    path: str | Path,
    frames: np.ndarray,
    fps: float,
    *,
    audio: np.ndarray | None = None,
    sample_rate: int | None = None,
    crf: int = 20,
    preset: str = "veryfast",
) -> None:
    """H.264 (yuv420p) and AAC; the bytes depend on the input alone.

    Args:
      frames: uint8 (T, H, W, 3) RGB with even H and W.
      audio: float32 (N,) or (N, C) in [-1, 1] at `sample_rate` Hz; None for a silent video.
      crf, preset: x264's quality and speed.
    """
    with _replacing(Path(path), VIDEO_SUFFIXES) as partial, _container(partial) as container:
        video = container.add_stream("libx264", rate=fractions.Fraction(fps).limit_denominator(1001))
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        # With the macroblock tree, equal frames of small pictures give unequal bytes now and then.
        video.options = {"crf": str(crf), "preset": preset, "threads": "1", "mbtree": "0"}
        sound = None if audio is None else _audio_stream(container, audio, _required(sample_rate))
        if sound is not None:
            # ffmpeg's default search for quantisers takes five times as long as everything else here.
            sound.options = {"aac_coder": "fast"}
        for image in frames:
            container.mux(
                video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"))
            )
        container.mux(video.encode(None))
        if sound is not None and audio is not None:
            _encode_audio(container, sound, audio)


def mux_audio(video_path: str | Path, audio: np.ndarray, sample_rate: int, out_path: str | Path) -> None:
    """Puts a sound onto a video from its start: the video's packets are copied, its own sound is left out.

    Args:
      audio: float32 (N,) or (N, C) in [-1, 1] at `sample_rate` Hz.
    """
    video_path = Path(video_path)
    with _replacing(Path(out_path), VIDEO_SUFFIXES) as partial, _source(video_path) as source:
        if not source.streams.video:
            raise FlowleyError(f"{video_path}: has no video stream")
        with _container(partial) as container:
            stream = source.streams.video[0]
            if stream.codec.canonical_name not in container.supported_codecs:
                raise _cannot_hold(out_path, video_path, stream)
            copied = container.add_stream_from_template(stream)
            sound = _audio_stream(container, audio, sample_rate)
            try:
                container.start_encoding()
            except (av.error.ArgumentError, av.error.PatchWelcomeError) as error:
                raise _cannot_hold(out_path, video_path, stream) from error
            for packet in _timed_packets(source, stream):
                packet.stream = copied
                container.mux(packet)
            _encode_audio(container, sound, audio)


def write_audio(path: str | Path, audio: np.ndarray, sample_rate: int) -> None:
    """Writes .wav (16-bit) or .flac (16-bit).

    Args:
      audio: float (N,) or (N, C); clipped to [-1, 1].
    """
    with _replacing(Path(path), AUDIO_SUFFIXES) as partial:
        soundfile.write(partial, np.clip(audio, -1.0, 1.0), sample_rate, subtype="PCM_16")


def _replacing(path: Path, suffixes: tuple[str, ...]) -> contextlib.AbstractContextManager[Path]:
    if path.suffix not in suffixes:
        raise FlowleyError(f"{path}: the ending must be one of {', '.join(suffixes)}")
    return replacing(path, av.error.FFmpegError, soundfile.SoundFileError)


def _cannot_hold(out_path, video_path: Path, stream) -> FlowleyError:
    return FlowleyError(
        f"{out_path}: cannot hold {video_path}'s {stream.codec.canonical_name} video; .mkv can"
    )


def _source(path: Path) -> av.container.InputContainer:
    try:
        return av.open(str(path))
    except av.error.FFmpegError as error:
        raise FlowleyError(f"{path}: not readable as video ({error.strerror})") from error


def _timed_packets(source: av.container.InputContainer, stream) -> Iterator[av.Packet]:
    """A stream's packets, with times that count from the file's start.

    The first ones of Matroska have no decoding time, and get the instants before.
    """
    start = round((source.start_time or 0) / av.time_base / stream.time_base)
    untimed: list[av.Packet] | None = []
    for packet in source.demux(stream):
        if packet.size == 0:
            continue
        if packet.pts is not None:
            packet.pts -= start
        if packet.dts is not None:
            packet.dts -= start
        if untimed is None:
            yield packet
        elif packet.dts is None:
            untimed.append(packet)
        else:
            step = packet.duration or round(1 / (stream.average_rate * stream.time_base))
            for before, early in enumerate(untimed):
                early.dts = packet.dts - (len(untimed) - before) * step
                yield early
            untimed = None
            yield packet
    if untimed:
        raise FlowleyError(f"{source.name}: its video has no decoding times, so that it cannot be copied")


def _container(partial: Path) -> av.container.OutputContainer:
    options = {"movflags": "+faststart"} if partial.suffix != ".mkv" else {}
    return av.open(str(partial), "w", options={**options, "fflags": "+bitexact"})


def _audio_stream(container, audio: np.ndarray, sample_rate: int):
    channels = 1 if audio.ndim == 1 else audio.shape[1]
    if channels not in (1, 2):
        raise FlowleyError(f"{container.name}: sound of {channels} channels; one or two can be written")
    return container.add_stream("aac", rate=sample_rate, layout="mono" if channels == 1 else "stereo")


def _encode_audio(container, stream, audio: np.ndarray) -> None:
    planes = np.clip(np.atleast_2d(audio.T), -1.0, 1.0).astype(np.float32)
    for start in range(0, planes.shape[1], AAC_FRAME):
        chunk = np.ascontiguousarray(planes[:, start : start + AAC_FRAME])
        frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout=stream.layout.name)
        frame.sample_rate, frame.pts = stream.rate, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _required(sample_rate: int | None) -> int:
    if sample_rate is None:
        raise ValueError("a sound needs its sample rate")
    return sample_rate
