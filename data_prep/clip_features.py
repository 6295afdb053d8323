"""Features of the clips of a table, made in parallel and kept in a folder until the records are written."""

import concurrent.futures
import concurrent.futures.process
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from flowley_jax.audio.bigvgan_vocoder import BigVganVocoder
from flowley_jax.audio.griffin_lim import GriffinLimVocoder
from flowley_jax.audio.mel import MelConfig, log_mel, mel_preset
from flowley_jax.audio.pca import PcaCodec
from flowley_jax.audio.protocols import AudioCodec, Vocoder, samples_for
from flowley_jax.audio.vae_codec import VaeCodec
from flowley_jax.data.clip_table import Clip
from flowley_jax.encoders.clip_frames import ClipFrames
from flowley_jax.encoders.hashed_text import HashedTextEncoder
from flowley_jax.encoders.pixels import PixelEncoder
from flowley_jax.encoders.protocols import TextEncoder, VideoEncoder
from flowley_jax.encoders.t5_text import T5Text
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bundles import Bundle
from flowley_jax.media.read import read_audio, read_frames
from flowley_jax.whole_files import replacing

# One thread of linear algebra for each worker: more of them only contend.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Clips that are read, or waiting, for each worker.
_AHEAD = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """What the records are made with; see the flags of `data_prep.records`.

    Attributes:
      video, text, codec, vocoder: an embedded part by name, or the folder of a bundle of published weights.
    """

    video: str = PixelEncoder.name
    text: str = HashedTextEncoder.name
    codec: str = PcaCodec.name
    vocoder: str = GriffinLimVocoder.name
    seconds: float = 4.0
    mel: str = "16k"
    latent_dim: int = 20
    video_fps: float = 24.0
    frame_size: int = 96
    text_dim: int = 64
    max_tokens: int = 32
    pad_seconds: float = 0.0
    normalize_peak: bool = False
    feature_dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self):
        if not 0.0 < self.seconds < math.inf:
            raise FlowleyError(f"seconds={self.seconds} must be positive")

    @functools.cached_property
    def video_encoder(self) -> VideoEncoder:
        if self.video == PixelEncoder.name:
            return PixelEncoder(fps=self.video_fps, frame_size=self.frame_size)
        return ClipFrames(bundle=Bundle.open(self.video), fps=self.video_fps)

    @functools.cached_property
    def text_encoder(self) -> TextEncoder:
        if self.text == HashedTextEncoder.name:
            return HashedTextEncoder(dim=self.text_dim, max_tokens=self.max_tokens)
        return T5Text(bundle=Bundle.open(self.text))

    @functools.cached_property
    def fixed_codec(self) -> VaeCodec | None:
        """A codec of published weights; None for the embedded one, which is fitted to the clips."""
        return None if self.codec == PcaCodec.name else VaeCodec(bundle=Bundle.open(self.codec))

    @property
    def mel_config(self) -> MelConfig:
        """That of the codec."""
        return self.fixed_codec.mel if self.fixed_codec else mel_preset(self.mel)

    def check_rates(self) -> None:
        """Raises a FlowleyError where codec and vocoder do not fit together, before any clip is read."""
        if self.vocoder == GriffinLimVocoder.name:
            return
        wanted = self.mel_config.sample_rate
        made = BigVganVocoder(bundle=Bundle.open(self.vocoder)).sample_rate
        if made != wanted:
            raise FlowleyError(
                f"vocoder {self.vocoder} makes {made} Hz, codec {self.codec} {wanted} Hz (--mel for pca); "
                "they must be the same"
            )

    def vocoder_for(self, codec: AudioCodec) -> Vocoder:
        """What makes waves of the codec's frames."""
        if self.vocoder == GriffinLimVocoder.name:
            return GriffinLimVocoder(mel=codec.mel)
        return BigVganVocoder(bundle=Bundle.open(self.vocoder))

    @property
    def versions(self) -> tuple[int | str, ...]:
        """Of the encoders, and what tells published weights apart."""
        bundles = (path for path in (self.video, self.text, self.codec) if Path(path).is_dir())
        digests = (Bundle.open(path).sha256 for path in bundles)
        return self.video_encoder.version, self.text_encoder.version, *digests


def extract_features(
    table: Sequence[Clip], settings: RecordSettings, cache: Path, workers: int
) -> dict[str, str]:
    """Caches the features of every clip; returns the reason for each id that cannot be used."""
    missing = [clip for clip in table if not _path_of(cache, clip, settings).is_file()]
    if len(missing) < len(table):
        print(f"{len(table) - len(missing)} of {len(table)} clips are read already")
    reasons = {}
    # A log keeps every line.
    pause = 0.1 if sys.stderr.isatty() else 30.0
    with tqdm(total=len(missing), desc="reading clips", unit="clip", mininterval=pause) as progress:
        for clip_id, reason in _map(missing, settings, cache, workers):
            progress.update()
            if reason is not None:
                reasons[clip_id] = reason
    return reasons


def _map(
    clips: Sequence[Clip], settings: RecordSettings, cache: Path, workers: int
) -> Iterator[tuple[str, str | None]]:
    if workers <= 1 or len(clips) <= 1:
        for clip in clips:
            yield _finish(clip, _read(clip, settings), settings, cache)
        return
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        # What is read waits in memory for its turn on the devices: no more of it than keeps the readers busy.
        plain = dataclasses.replace(settings)
        rest, reading = iter(clips), {}
        for clip in itertools.islice(rest, _AHEAD * workers):
            reading[pool.submit(_read, clip, plain)] = clip
        while reading:
            done, _ = concurrent.futures.wait(reading, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                clip = reading.pop(future)
                for following in itertools.islice(rest, 1):
                    reading[pool.submit(_read, following, plain)] = following
                yield _finish(clip, future.result(), settings, cache)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise FlowleyError(
            f"a process that reads clips died (out of memory?); what is read is kept in {cache}, run again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _read(clip: Clip, settings: RecordSettings) -> dict[str, Any] | str:
    """What is made of one clip without devices; a text says why it cannot be used."""
    try:
        return _read_clip(clip, settings)
    except Exception as error:  # A file that breaks a decoder in a new way must not end the run.
        return " ".join(str(error).split()) or type(error).__name__


def _finish(
    clip: Clip, read: dict[str, Any] | str, settings: RecordSettings, cache: Path
) -> tuple[str, str | None]:
    """Caches one clip's features; a reason instead of None says why it cannot be used."""
    if isinstance(read, str):
        return clip.id, read
    features = dict(read)
    if "frames" in features:
        features["video_features"] = settings.video_encoder(features.pop("frames"))
    if "text_features" not in features:
        text, lengths = settings.text_encoder([clip.caption])
        features.update(text_features=text[0], text_len=lengths[0])
    if settings.fixed_codec:
        mean, std = settings.fixed_codec.encode_log_mel(features.pop("log_mel")[None])
        features.update(audio_mean=mean[0], audio_std=std[0])
    with replacing(_path_of(cache, clip, settings)) as partial:
        np.savez(partial, **features)
    return clip.id, None


def _read_clip(clip: Clip, settings: RecordSettings) -> dict[str, Any]:
    """Frames or their embedded features, the embedded ones of the caption, and log-mel frames."""
    encoder = settings.video_encoder
    frames = read_frames(
        clip.video_path, fps=settings.video_fps, size=encoder.frame_size, seconds=settings.seconds
    )
    frame_count = round(settings.seconds * settings.video_fps)
    frames = _padded(frames, frame_count, settings.pad_seconds * settings.video_fps, "frames", "edge")
    read: dict[str, Any] = {"log_mel": log_mel(_wave_of_clip(clip, settings), settings.mel_config)}
    if isinstance(encoder, PixelEncoder):
        read["video_features"] = encoder(frames)
    else:
        read["frames"] = frames
    if isinstance(settings.text_encoder, HashedTextEncoder):
        text, lengths = settings.text_encoder([clip.caption])
        read.update(text_features=text[0], text_len=lengths[0])
    return read


def _wave_of_clip(clip: Clip, settings: RecordSettings) -> np.ndarray:
    mel = settings.mel_config
    samples = samples_for(settings.seconds, mel)
    wave = read_audio(
        clip.video_path,
        sample_rate=mel.sample_rate,
        seconds=samples / mel.sample_rate,
        normalize_peak=settings.normalize_peak,
    )
    return _padded(wave, samples, settings.pad_seconds * mel.sample_rate, "samples", "constant")


def _padded(array: np.ndarray, length: int, tolerance: float, unit: str, mode: Any) -> np.ndarray:
    short = length - len(array)
    if short > tolerance:
        raise FlowleyError(f"too short: {len(array)} {unit}, {length} are needed (--seconds, --pad-seconds)")
    if short <= 0:
        return array[:length]
    return np.pad(array, [(0, short), *[(0, 0)] * (array.ndim - 1)], mode=mode)


def cached_features(clip: Clip, settings: RecordSettings, cache: Path) -> dict[str, np.ndarray]:
    """What `extract_features` kept of a clip: video_features, text_features, text_len, and log_mel, or
    audio_mean and audio_std where the codec was there before the clips."""
    path = _path_of(cache, clip, settings)
    try:
        with open(path, "rb") as opened, np.load(opened) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FlowleyError(f"{path}: cannot be read ({error}); remove it and run again") from error


def digest_of(value: Any) -> str:
    """Short digest of anything that JSON can hold."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()


def _path_of(cache: Path, clip: Clip, settings: RecordSettings) -> Path:
    """Named by all that the features depend on, so that a changed clip or setting is read anew."""
    try:
        status = clip.video_path.stat()
        media = [status.st_size, status.st_mtime_ns]
    except OSError:
        media = []
    # The codec comes after the cache, and does not matter here.
    made_with = dataclasses.asdict(dataclasses.replace(settings, latent_dim=0))
    key = [clip.id, str(clip.video_path), media, clip.caption, made_with, settings.versions]
    return cache / f"{digest_of(key)}.npz"
