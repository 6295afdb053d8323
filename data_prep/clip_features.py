"""Features of the clips of a table, made in parallel and kept in a folder until the records are written."""

import concurrent.futures
import concurrent.futures.process
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from flowley_jax.audio.mel import log_mel, mel_preset
from flowley_jax.audio.protocols import samples_for
from flowley_jax.data.clip_table import Clip
from flowley_jax.encoders.hashed_text import HashedTextEncoder
from flowley_jax.encoders.pixels import PixelEncoder
from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import read_audio, read_frames
from flowley_jax.whole_files import replacing

# One thread of linear algebra for each worker: more of them only contend.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """What the records are made with; see the flags of `data_prep.records`."""

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

    @property
    def video_encoder(self) -> PixelEncoder:
        return PixelEncoder(fps=self.video_fps, frame_size=self.frame_size)

    @property
    def versions(self) -> tuple[int, int]:
        """Of the encoders."""
        return self.video_encoder.version, self.text_encoder.version

    @property
    def text_encoder(self) -> HashedTextEncoder:
        return HashedTextEncoder(dim=self.text_dim, max_tokens=self.max_tokens)


def extract_features(
    table: Sequence[Clip], settings: RecordSettings, cache: Path, workers: int
) -> dict[str, str]:
    """Caches the features of every clip; returns the reason for each id that cannot be used."""
    missing = [clip for clip in table if not _path_of(cache, clip, settings).is_file()]
    if len(missing) < len(table):
        print(f"{len(table) - len(missing)} of {len(table)} clips are read already")
    reasons = {}
    with tqdm(total=len(missing), desc="reading clips", unit="clip") as progress:
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
            yield _extract(clip, settings, cache)
        return
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        futures = [pool.submit(_extract, clip, settings, cache) for clip in clips]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise FlowleyError(
            f"a process that reads clips died (out of memory?); what is read is kept in {cache}, run again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _extract(clip: Clip, settings: RecordSettings, cache: Path) -> tuple[str, str | None]:
    """Caches one clip's features; a reason instead of None says why it cannot be used."""
    try:
        features = _features_of_clip(clip, settings)
    except Exception as error:  # A file that breaks a decoder in a new way must not end the run.
        return clip.id, " ".join(str(error).split()) or type(error).__name__
    with replacing(_path_of(cache, clip, settings)) as partial:
        np.savez(partial, **features)
    return clip.id, None


def _features_of_clip(clip: Clip, settings: RecordSettings) -> dict[str, Any]:
    encoder = settings.video_encoder
    frames = read_frames(
        clip.video_path, fps=settings.video_fps, size=settings.frame_size, seconds=settings.seconds
    )
    frame_count = round(settings.seconds * settings.video_fps)
    frames = _padded(frames, frame_count, settings.pad_seconds * settings.video_fps, "frames", "edge")
    wave = _wave_of_clip(clip, settings)
    text_features, text_lengths = settings.text_encoder([clip.caption])
    return {
        "log_mel": log_mel(wave, mel_preset(settings.mel)),
        "video_features": encoder(frames),
        "text_features": text_features[0],
        "text_len": text_lengths[0],
    }


def _wave_of_clip(clip: Clip, settings: RecordSettings) -> np.ndarray:
    mel = mel_preset(settings.mel)
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
        raise FlowleyError(f"too short: {len(array)} {unit}, {length} are needed")
    if short <= 0:
        return array[:length]
    return np.pad(array, [(0, short), *[(0, 0)] * (array.ndim - 1)], mode=mode)


def cached_features(clip: Clip, settings: RecordSettings, cache: Path) -> dict[str, np.ndarray]:
    """What `extract_features` kept of a clip: log_mel, video_features, text_features, text_len."""
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
