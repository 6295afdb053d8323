"""Read a media file as input for the encoders, or report why it cannot be used."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.record_components import RecordComponents
from data_prep.rejection import Reason, RejectedError, Rejection, read_or_reject
from data_prep.settings import OptionalStream, RecordSettings
from flowley_jax.audio.mel import MelConfig, log_mel, mel_basis
from flowley_jax.audio.protocols import samples_for
from flowley_jax.encoders.protocols import VideoEncoder
from flowley_jax.media.level import integrated_loudness
from flowley_jax.media.read import SILENT_PEAK, MediaInfo, probe, read_audio, read_frames
from flowley_jax.media.spans import stream_spans

# Mean absolute difference of two frames, in 8-bit steps, that a video encoder can add to a still picture.
_STILL_DIFFERENCE = 0.25
# Stands for silence, whose loudness is no number.
_LOWEST_LUFS = -100.0
# Headers may overstate the duration by this much.
_ROUNDING_SECONDS = 0.5
# Encoders let the streams of a file begin this far apart, and packets leave gaps of this length.
OFFSET_TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True)
class DecodedSound:
    """The sound of a clip.

    Attributes:
      log_mel: (frames, bins) float32.
      loudness: integrated loudness in LUFS, at least -100.
    """

    log_mel: np.ndarray
    loudness: float


@dataclasses.dataclass(frozen=True)
class DecodedClip:
    """The part of a clip's features that needs no accelerator.

    Attributes:
      sound: None without audio.
      frames: (Tv, H, W, 3) uint8; None without video, and if `video_features` is set.
      video_features: (Tv, video_dim) float32 of the embedded image encoder, which runs where clips are read.
    """

    sound: DecodedSound | None = None
    frames: np.ndarray | None = None
    video_features: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class ClipReader:
    """Reader of clips according to the settings, for processes that need not import JAX.

    Attributes:
      settings: settings of the records.
      mel: mel front end of the codec.
      frame_size: height and width of the frames that the image encoder gets.
      host_encoder: image encoder that runs in these processes; None for one that needs JAX.
    """

    settings: RecordSettings
    mel: MelConfig
    frame_size: int
    host_encoder: VideoEncoder | None

    @classmethod
    def create(cls, components: RecordComponents) -> "ClipReader":
        """Return the reader that fits the components."""
        encoder = components.video_encoder
        host_encoder = encoder if encoder.runs_on_host else None
        return cls(components.settings, components.mel, encoder.frame_size, host_encoder)

    def prepare(self) -> None:
        """Load what reading needs: the first mel basis of a process loads librosa, which takes seconds."""
        mel_basis(self.mel)

    def __call__(self, path: str, optional: OptionalStream = "") -> DecodedClip | Rejection:
        """Return a decoded clip, or the reason why it cannot be used. Never raise.

        Args:
          path: the media file.
          optional: the stream that the clip may lack.
        """
        return read_or_reject(path, lambda local: self._read(local, optional))

    def _read(self, path: Path, optional: OptionalStream) -> DecodedClip:
        info = probe(path)
        self._check(info, optional)
        if info.has_audio:
            self._check_timeline(path)
        frames = None if info.width is None else self._read_frames(path, info)
        sound = self._read_sound(path, info) if info.has_audio else None
        if frames is not None and self.host_encoder is not None:
            return DecodedClip(sound=sound, video_features=self.host_encoder(frames))
        return DecodedClip(sound=sound, frames=frames)

    def _check(self, info: MediaInfo, optional: OptionalStream) -> None:
        settings = self.settings
        if info.width is None and optional != "video":
            raise RejectedError(Reason.NO_VIDEO, "has no video stream")
        if not info.has_audio and optional != "audio":
            raise RejectedError(Reason.NO_AUDIO, "has no audio stream")
        if info.duration > settings.max_seconds:
            limit = f"more than max_seconds={settings.max_seconds:g}"
            raise RejectedError(Reason.TOO_LONG, f"lasts {info.duration:.0f} s, {limit}")
        if (info.video_fps or 0.0) > settings.max_frame_rate:
            limit = f"more than max_frame_rate={settings.max_frame_rate:g}"
            raise RejectedError(Reason.FRAME_RATE, f"has {info.video_fps:g} frames per second, {limit}")

    def _check_timeline(self, path: Path) -> None:
        """Check that picture and sound cover a clip together, and that the sound has no hole in it."""
        seconds = self.settings.seconds
        spans = stream_spans(path, seconds=seconds)
        if spans.audio is not None and spans.audio.hole > OFFSET_TOLERANCE:
            raise RejectedError(Reason.HOLE, f"{spans.audio.hole:.2f} s within its sound are missing")
        offset = spans.offset
        if offset is None or abs(offset) <= OFFSET_TOLERANCE:
            return
        # The later stream may go on for as long after the end of the clip as it began after its start.
        overlap = stream_spans(path, seconds=seconds + abs(offset)).overlap or 0.0
        wanted = seconds - self.settings.pad_seconds
        if overlap < wanted - OFFSET_TOLERANCE:
            needed = f"they overlap by {overlap:.2f} s, {wanted:g} s are needed"
            raise RejectedError(Reason.OFFSET, f"{describe_offset(offset)}; {needed}")

    def _read_frames(self, path: Path, info: MediaInfo) -> np.ndarray:
        settings = self.settings
        frames = read_frames(path, fps=settings.video_fps, size=self.frame_size, seconds=settings.seconds)
        wanted = round(settings.seconds * settings.video_fps)
        if len(frames) == 1 and wanted > 1:
            raise RejectedError(Reason.PICTURE, "its video is a single frame")
        if len(frames) < wanted:
            self._check_length("video", len(frames), wanted, settings.video_fps, info)
            frames = _pad(frames, wanted, "edge")
        if settings.reject_still and _is_still(frames[:wanted]):
            raise RejectedError(Reason.PICTURE, "shows the same picture throughout")
        return frames[:wanted]

    def _read_sound(self, path: Path, info: MediaInfo) -> DecodedSound:
        wave = self._read_wave(path, info)
        loudness = max(_LOWEST_LUFS, integrated_loudness(wave, self.mel.sample_rate))
        return DecodedSound(log_mel=log_mel(wave, self.mel), loudness=loudness)

    def _read_wave(self, path: Path, info: MediaInfo) -> np.ndarray:
        rate = self.mel.sample_rate
        wanted = samples_for(self.settings.seconds, self.mel)
        wave = read_audio(
            path,
            sample_rate=rate,
            seconds=wanted / rate,
            normalize_peak=self.settings.normalize_peak,
        )
        peak = float(np.abs(wave).max(initial=0.0))
        if self.settings.reject_silent and peak < SILENT_PEAK:
            raise RejectedError(Reason.SILENT, f"its sound is silent (peak {peak:.1e})")
        if len(wave) < wanted:
            self._check_length("audio", len(wave), wanted, rate, info)
            wave = _pad(wave, wanted, "constant")
        return wave[:wanted]

    def _check_length(
        self, stream: Literal["video", "audio"], length: int, wanted: int, rate: float, info: MediaInfo
    ) -> None:
        """Raise a RejectedError if more is missing than may be padded."""
        if wanted - length <= self.settings.pad_seconds * rate:
            return
        seconds = length / rate
        # Audio often ends before the video does, so its end does not show that the file was cut.
        may_be_cut = stream == "video" or info.width is None
        if may_be_cut and info.duration - _ROUNDING_SECONDS > seconds:
            detail = f"has {seconds:.2f} s of {stream}, but its header states {info.duration:.2f} s"
            raise RejectedError(Reason.TRUNCATED, detail)
        detail = f"has {seconds:.2f} s of {stream}, but {wanted / rate:.2f} s are needed"
        raise RejectedError(Reason.TOO_SHORT, detail)


def describe_offset(offset: float) -> str:
    """Return by how many seconds the sound of a clip begins before or after its picture, as text."""
    return f"sound begins {abs(offset):.2f} s {'after' if offset > 0 else 'before'} the picture"


def _pad(array: np.ndarray, length: int, mode: Literal["edge", "constant"]) -> np.ndarray:
    return np.pad(array, [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)], mode=mode)


def _is_still(frames: np.ndarray) -> bool:
    first = frames[0].astype(np.int16)
    return len(frames) > 1 and all(np.abs(frame - first).mean() < _STILL_DIFFERENCE for frame in frames[1:])
