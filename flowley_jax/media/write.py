"""Write video and sound; a file appears whole or not at all."""

import contextlib
import fractions
from collections.abc import Iterator
from pathlib import Path

import av
import av.container
import av.error
import numpy as np
import soundfile

from flowley_jax.common.files import atomic_write
from flowley_jax.errors import FlowleyError
from flowley_jax.media.formats import AUDIO_SUFFIXES, MUX_SUFFIXES

# Samples of one AAC frame.
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
    """Write H.264 (yuv420p) and AAC; the bytes depend on the input only.

    Args:
      path: file to write: .mp4, .mkv or .mov.
      frames: uint8 (T, H, W, 3) RGB with even H and W.
      fps: frames per second.
      audio: float32 (N,) or (N, C) in [-1, 1]; None for a silent video.
      sample_rate: sample rate of `audio` in Hz.
      crf, preset: x264's quality and speed.

    Raises:
      FlowleyError: the suffix is not one of these three, or the file cannot be written.
    """
    with _writing(Path(path), MUX_SUFFIXES) as partial, _container(partial) as container:
        video = container.add_stream("libx264", rate=fractions.Fraction(fps).limit_denominator(1001))
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        # With macroblock-tree rate control, small pictures sometimes get different bytes for equal input.
        video.options = {"crf": str(crf), "preset": preset, "threads": "1", "mbtree": "0"}
        sound = None if audio is None else _audio_stream(container, audio, _required(sample_rate), path)
        if sound is not None:
            # FFmpeg's default quantiser search takes five times as long as everything else here.
            sound.options = {"aac_coder": "fast"}
        for image in frames:
            container.mux(
                video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"))
            )
        container.mux(video.encode(None))
        if sound is not None and audio is not None:
            _encode_audio(container, sound, audio)


def mux_audio(video_path: str | Path, audio: np.ndarray, sample_rate: int, out_path: str | Path) -> None:
    """Copy a video without re-encoding its picture, with `audio` in place of its own sound.

    The sound starts at the start of the file. `out_path` may be `video_path`.

    Args:
      video_path: video to copy the picture of.
      audio: float32 (N,) or (N, C) in [-1, 1].
      sample_rate: sample rate of `audio` in Hz.
      out_path: file to write: .mp4, .mkv or .mov.

    Raises:
      FlowleyError: the video cannot be read, its codec does not fit into the new container, or the new file
        cannot be written. The message names the file.
    """
    video_path = Path(video_path)
    with _writing(Path(out_path), MUX_SUFFIXES) as partial, _source(video_path) as source:
        if not source.streams.video:
            raise FlowleyError(f"{video_path}: has no video stream")
        with _container(partial) as container:
            stream = source.streams.video[0]
            if stream.codec.canonical_name not in container.supported_codecs:
                raise _cannot_hold(out_path, video_path, stream)
            copied = container.add_stream_from_template(stream)
            sound = _audio_stream(container, audio, sample_rate, out_path)
            try:
                container.start_encoding()
            except (av.error.ArgumentError, av.error.PatchWelcomeError) as error:
                raise _cannot_hold(out_path, video_path, stream) from error
            for packet in _timed_packets(source, stream):
                packet.stream = copied
                container.mux(packet)
            _encode_audio(container, sound, audio)


def write_audio(path: str | Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write a .wav or .flac file of 16 bits per sample.

    Args:
      path: file to write.
      audio: float (N,) or (N, C); clipped to [-1, 1].
      sample_rate: Hz.

    Raises:
      FlowleyError: the suffix is neither .wav nor .flac, or the file cannot be written.
    """
    with _writing(Path(path), AUDIO_SUFFIXES) as partial:
        soundfile.write(partial, np.clip(audio, -1.0, 1.0), sample_rate, subtype="PCM_16")


def _writing(path: Path, suffixes: tuple[str, ...]) -> contextlib.AbstractContextManager[Path]:
    """Return the context of an atomic write of a file with one of these suffixes."""
    if path.suffix not in suffixes:
        raise FlowleyError(f"{path}: the extension must be one of {', '.join(suffixes)}")
    return atomic_write(path, av.error.FFmpegError, soundfile.SoundFileError)


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
    """Yield a stream's packets, with times relative to the file's start.

    The first packets of Matroska files lack a decoding time; they get times just before the first one that
    has it.
    """
    start = round((source.start_time or 0) / av.time_base / stream.time_base)
    # Packets before the first decoding time; None after it.
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
            for index, early in enumerate(untimed):
                early.dts = packet.dts - (len(untimed) - index) * step
                yield early
            untimed = None
            yield packet
    if untimed:
        raise FlowleyError(f"{source.name}: its video has no decoding times, so it cannot be copied")


def _container(partial: Path) -> av.container.OutputContainer:
    options = {"movflags": "+faststart"} if partial.suffix != ".mkv" else {}
    return av.open(str(partial), "w", options={**options, "fflags": "+bitexact"})


def _audio_stream(container, audio: np.ndarray, sample_rate: int, path: str | Path):
    channels = 1 if audio.ndim == 1 else audio.shape[1]
    if channels not in (1, 2):
        raise FlowleyError(f"{path}: channels={channels} must be 1 or 2")
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
