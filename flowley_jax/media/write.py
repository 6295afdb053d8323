"""Write video and sound; a file appears whole or not at all."""

import contextlib
import fractions
import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import av.container
import av.error
import numpy as np
import soundfile

from flowley_jax.common.files import atomic_write
from flowley_jax.errors import FlowleyError
from flowley_jax.media.aac import audio_frames, encode_below_ceiling
from flowley_jax.media.formats import AUDIO_SUFFIXES, MUX_SUFFIXES, has_suffix
from flowley_jax.media.inputs import ffmpeg_name, open_input, required_stream
from flowley_jax.media.level import limited_blocks
from flowley_jax.media.picture import add_picture


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
      audio: float32 (N,) or (N, C) in [-1, 1], written at its own level; None for a silent video.
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
        packets = [_picture_packets(video, frames)]
        if sound is not None and audio is not None:
            packets.append(_exact_sound_packets(sound, audio))
        _mux(container, *packets)


def mux_audio(
    video_path: str | Path,
    audio: np.ndarray,
    sample_rate: int,
    out_path: str | Path,
    *,
    start: float = 0.0,
    end: float | None = None,
    for_browsers: bool = False,
) -> None:
    """Copy a video without re-encoding its picture, with `audio` in place of its own sound.

    The sound starts at the start of the file, or of the part. `out_path` may be `video_path`. A part of a
    picture, and pictures that no container with sound can hold, such as those of a .gif, are encoded in
    H.264, and the log says so.

    Args:
      video_path: video to copy the picture of.
      audio: float32 (N,) or (N, C); its true peak is limited to -1 dB.
      sample_rate: sample rate of `audio` in Hz.
      out_path: file to write: .mp4, .mkv or .mov.
      start, end: the part of the video to take, in seconds from its start; None for the picture's end.
      for_browsers: whether to encode what is not H.264 in 4:2:0, which every browser plays.

    Raises:
      FlowleyError: the video cannot be read, its picture ends before `start`, its codec does not fit into the
        new container, or the new file cannot be written. The message names the file.
    """
    video_path, out_path = Path(video_path), Path(out_path)
    check_mux_suffix(out_path)
    with open_input(video_path) as source:
        stream = required_stream("video", source, video_path)
        with (
            _writing(out_path, MUX_SUFFIXES) as partial,
            _refusals(video_path, out_path),
            _container(partial) as container,
        ):
            picture = add_picture(
                container,
                source,
                stream,
                video_path,
                out_path,
                start=start,
                end=end,
                for_browsers=for_browsers,
            )
            sound = _audio_stream(container, audio, sample_rate, out_path)
            _mux(container, picture, _sound_packets(sound, audio))


@contextlib.contextmanager
def _refusals(video_path: Path, out_path: Path) -> Iterator[None]:
    """Turn errors of muxers and encoders, which are none of the disk, into one that names the video."""
    try:
        yield
    except (
        av.error.ArgumentError,
        av.error.InvalidDataError,
        av.error.PatchWelcomeError,
        av.error.ExternalError,
    ) as error:
        message = f"{video_path}: its picture cannot be put into {out_path} ({error.strerror})"
        raise FlowleyError(message) from error


def write_audio(path: str | Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write a .wav or .flac file of 16 bits per sample.

    Args:
      path: file to write.
      audio: float (N,) or (N, C); its true peak is limited to -1 dB.
      sample_rate: Hz.

    Raises:
      FlowleyError: the suffix is neither .wav nor .flac, or the file cannot be written.
    """
    channels = 1 if audio.ndim == 1 else audio.shape[1]
    with (
        _writing(Path(path), AUDIO_SUFFIXES) as partial,
        soundfile.SoundFile(partial, "w", sample_rate, channels, "PCM_16") as file,
    ):
        for block in limited_blocks(audio, sample_rate):
            file.write(block)


def _writing(path: Path, suffixes: tuple[str, ...]) -> contextlib.AbstractContextManager[Path]:
    """Return the context of an atomic write of a file with one of these suffixes."""
    _check_suffix(path, suffixes)
    return atomic_write(path, av.error.FFmpegError, soundfile.SoundFileError)


def check_mux_suffix(path: Path) -> None:
    """Raise FlowleyError if a file of this name cannot hold picture and sound."""
    _check_suffix(path, MUX_SUFFIXES)


def _check_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    if not has_suffix(path, suffixes):
        raise FlowleyError(f"{path}: the extension must be one of {', '.join(suffixes)}")


def _mux(container: av.container.OutputContainer, *streams: Iterable[av.Packet]) -> None:
    """Write packets by decoding time, so that picture and sound of one moment are side by side."""
    container.start_encoding()
    for packet in heapq.merge(*streams, key=_decoding_time):
        container.mux(packet)


def _decoding_time(packet: av.Packet) -> fractions.Fraction:
    assert packet.dts is not None
    return packet.dts * packet.time_base


def _container(partial: Path) -> av.container.OutputContainer:
    options = {"movflags": "+faststart"} if partial.suffix.lower() != ".mkv" else {}
    return av.open(ffmpeg_name(partial), "w", options={**options, "fflags": "+bitexact"})


def _audio_stream(container, audio: np.ndarray, sample_rate: int, path: str | Path):
    channels = 1 if audio.ndim == 1 else audio.shape[1]
    if channels not in (1, 2):
        raise FlowleyError(f"{path}: channels={channels} must be 1 or 2")
    return container.add_stream("aac", rate=sample_rate, layout="mono" if channels == 1 else "stereo")


def _picture_packets(stream, frames: np.ndarray) -> Iterator[av.Packet]:
    for image in frames:
        yield from stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"))
    yield from stream.encode(None)


def _exact_sound_packets(stream, audio: np.ndarray) -> Iterator[av.Packet]:
    """Encode a sound at its own level, cut at full scale."""
    for frame in audio_frames([np.clip(audio, -1.0, 1.0)], stream.rate, stream.layout.name):
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _sound_packets(stream, audio: np.ndarray) -> Iterator[av.Packet]:
    """Encode a sound with the true peak of written sounds.

    The encoder of the stream itself is not used, because it could encode the sound only once.
    """
    for packet in encode_below_ceiling(audio, stream.rate, stream.layout.name):
        packet.stream = stream
        yield packet


def _required(sample_rate: int | None) -> int:
    if sample_rate is None:
        raise ValueError("a sound needs its sample rate")
    return sample_rate
