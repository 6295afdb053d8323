"""Inputs of the evaluation's networks from files, in the processes that read them.

As in av-benchmark, the channels of a sound are averaged, the mean over the file is subtracted, and the sound
is resampled like torchaudio and cut. Synchformer keeps the mean; ImageBind takes the first channel of the
whole file.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from flowley_jax.audio.onsets import detect_onsets
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation import tagger
from flowley_jax.evaluation.av_align import audio_peaks, video_peaks
from flowley_jax.evaluation.frames import ClipFrames, read_clip_frames
from flowley_jax.evaluation.levels import clip_level
from flowley_jax.evaluation.onset_protocol import published_onsets
from flowley_jax.evaluation.resample import resample
from flowley_jax.media.read import read_channels
from flowley_jax.networks import clap_audio, imagebind_audio, panns, passt, synchformer_config, vggish
from flowley_jax.networks.synchformer_config import SAMPLE_STEP, SEGMENT_SAMPLES

# Codecs and containers round the length of a sound; what is missing is filled with zeros.
MISSING_SECONDS = 0.1
_ONSET_RATE = 16_000

Arrays = dict[str, np.ndarray]


class ClipMedia:
    """The sound and the picture of a file, each decoded when it is first needed."""

    def __init__(self, path: Path, seconds: float):
        """Create it; nothing is read yet.

        Args:
          path: the file.
          seconds: length that the networks take, from the start of the file.
        """
        self.path, self.seconds = path, seconds
        self._waves: dict[tuple[int, bool], np.ndarray] = {}

    @classmethod
    def of_wave(cls, name: str, wave: np.ndarray, rate: int) -> "ClipMedia":
        """Return a sound that is in memory: a wave (N,) of a sample rate in Hz, without a picture."""
        media = cls(Path(name), len(wave) / rate)
        media.__dict__["channels"] = wave[None], rate
        return media

    @functools.cached_property
    def channels(self) -> tuple[np.ndarray, int]:
        """The whole sound, float32 (channels, N), and its sample rate in Hz.

        Raises:
          MediaError: there is no sound, or it cannot be read.
          FlowleyError: it is shorter than `seconds`.
        """
        channels, rate = read_channels(self.path)
        seconds = channels.shape[1] / rate
        if seconds < self.seconds - MISSING_SECONDS:
            raise FlowleyError(f"{self.path}: has {seconds:.2f} s of sound; {self.seconds:g} s are needed")
        return channels, rate

    def mono(self, rate: int, *, keep_mean: bool = False) -> np.ndarray:
        """Return the mean of the channels, float32 (rate · seconds,); see `channels` for the errors.

        Args:
          rate: sample rate in Hz.
          keep_mean: whether to keep the mean over the whole file.
        """
        if (rate, keep_mean) not in self._waves:
            self._waves[rate, keep_mean] = self._resampled(rate, keep_mean)
        return self._waves[rate, keep_mean]

    def _resampled(self, rate: int, keep_mean: bool) -> np.ndarray:
        channels, stored = self.channels
        wave = channels.mean(axis=0, keepdims=True)
        if not keep_mean:
            wave = wave - wave.mean()
        samples = int(rate * self.seconds)
        # What follows changes nothing, but would take long in a long file.
        enough = int(stored * (self.seconds + 1.0))
        wave = resample(wave[:, :enough], stored, rate)[0, :samples]
        return np.pad(wave, (0, samples - len(wave)))

    def as_stored(self) -> tuple[np.ndarray, int]:
        """Return the mean of the channels at its own sample rate, cut to `seconds`; and the rate in Hz."""
        channels, rate = self.channels
        return channels.mean(axis=0)[: int(rate * self.seconds)], rate

    @functools.cached_property
    def frames(self) -> ClipFrames:
        """The frames for Synchformer and ImageBind; see `read_clip_frames` for the errors."""
        return read_clip_frames(self.path, self.seconds)


def _panns(media: ClipMedia) -> Arrays:
    return {"waves": _long_enough("PANNs", media.mono(panns.SAMPLE_RATE), panns.LEAST_SAMPLES)}


def _vggish(media: ClipMedia) -> Arrays:
    wave = _long_enough("VGGish", media.mono(vggish.SAMPLE_RATE), vggish.LEAST_SAMPLES)
    return {"examples": vggish.log_mel_examples(wave)}


def _passt(media: ClipMedia) -> Arrays:
    wave = media.mono(passt.SAMPLE_RATE)[: passt.SAMPLES]
    return {"waves": np.pad(wave, (0, passt.SAMPLES - len(wave)))}


def _clap(media: ClipMedia) -> Arrays:
    return {"waves": media.mono(clap_audio.SAMPLE_RATE)[: clap_audio.SAMPLES]}


def _imagebind_audio(media: ClipMedia) -> Arrays:
    """Return the images of the whole file: of all networks, this one does not cut it."""
    channels, rate = media.channels
    return {
        "images": imagebind_audio.clip_images(
            resample(channels, rate, imagebind_audio.SAMPLE_RATE, kernel_dtype=np.float32)
        )
    }


def _synchformer_audio(media: ClipMedia) -> Arrays:
    wave = media.mono(synchformer_config.SAMPLE_RATE, keep_mean=True)
    _long_enough("Synchformer", wave, SEGMENT_SAMPLES)
    segments = np.lib.stride_tricks.sliding_window_view(wave, SEGMENT_SAMPLES)[::SAMPLE_STEP]
    return {"segments": np.ascontiguousarray(segments)}


def _imagebind_video(media: ClipMedia) -> Arrays:
    return {"crops": media.frames.imagebind}


def _synchformer_video(media: ClipMedia) -> Arrays:
    return {"frames": media.frames.synchformer}


def _tagger(media: ClipMedia) -> Arrays:
    return {"log_mels": tagger.front_end(media.mono(tagger.SAMPLE_RATE))}


def _level(media: ClipMedia) -> Arrays:
    return {"level": clip_level(*media.as_stored()).as_array()}


def _audio_peaks(media: ClipMedia) -> Arrays:
    wave, rate = media.as_stored()
    return {"audio_peaks": audio_peaks(wave, rate)}


def _onsets(media: ClipMedia) -> Arrays:
    wave = media.mono(_ONSET_RATE, keep_mean=True)
    return {
        "onsets": detect_onsets(wave, _ONSET_RATE)[0],
        "protocol_onsets": published_onsets(wave, _ONSET_RATE).columns(),
    }


def _video_peaks(media: ClipMedia) -> Arrays:
    peaks = video_peaks(media.path, seconds=media.seconds)
    return {"video_peaks": peaks.times, "video_format": np.array([peaks.fps, peaks.width, peaks.height])}


def _long_enough(network: str, wave: np.ndarray, least: int) -> np.ndarray:
    if len(wave) < least:
        raise FlowleyError(f"{network} needs at least {least} samples; there are {len(wave)}")
    return wave


_PREPARATIONS: dict[str, Callable[[ClipMedia], Arrays]] = {
    "panns": _panns,
    "vggish": _vggish,
    "passt": _passt,
    "clap": _clap,
    "imagebind": _imagebind_audio,
    "synchformer": _synchformer_audio,
    "imagebind_video": _imagebind_video,
    "synchformer_video": _synchformer_video,
    "tagger": _tagger,
    "level": _level,
    "audio_peaks": _audio_peaks,
    "onsets": _onsets,
    "video_peaks": _video_peaks,
}


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Reader of one file, for the processes of a pool.

    Attributes:
      names: keys of what to prepare.
      seconds: length from the start of the file.
    """

    names: tuple[str, ...]
    seconds: float

    def __call__(self, path: str, names: tuple[str, ...] | None = None) -> dict[str, Arrays | str]:
        """Return the inputs by name, or one line on why there are none.

        Args:
          path: the file.
          names: what to prepare; None for all of `self.names`.
        """
        media = ClipMedia(Path(path), self.seconds)
        return prepare(media, self.names if names is None else names)


def prepare(media: ClipMedia, names: Iterable[str]) -> dict[str, Arrays | str]:
    """Return the inputs of networks by name, or one line on why there are none.

    Args:
      media: the file, or a sound in memory.
      names: what to prepare.
    """
    prepared: dict[str, Arrays | str] = {}
    for name in names:
        try:
            prepared[name] = _PREPARATIONS[name](media)
        # A file that breaks a decoder in a new way must not end the run.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            prepared[name] = reason.removeprefix(f"{media.path}: ")
    return prepared
