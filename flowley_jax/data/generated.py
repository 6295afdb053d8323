"""Random records of any sizes, for trying a configuration out before there is data.

They hold no sound and no picture, only numbers of plausible scale, but their `parts.json` names real parts of
the right sizes, so that every later step (training, previews, sampling) runs.
"""

import os
from collections.abc import Iterator

import numpy as np

from flowley_jax.audio.griffin_lim import GriffinLimVocoder
from flowley_jax.audio.mel import MEL_16K, MEL_44K
from flowley_jax.audio.pca import PcaCodec
from flowley_jax.audio.protocols import FRAMES_PER_LATENT
from flowley_jax.data.parts import Parts
from flowley_jax.data.record import Example, write_records
from flowley_jax.encoders.hashed_text import HashedTextEncoder
from flowley_jax.encoders.pixels import PixelEncoder
from flowley_jax.errors import FlowleyError

SOURCE = "generated at random, only for trying a configuration out"
_MELS = {mel.sample_rate: mel for mel in (MEL_16K, MEL_44K)}
_CAPTIONS = ("a ball bounces on the floor", "a bell rings", "rain")
_LATENT_STD = 0.5
_EVAL_SHARE = 4


def write_generated_records(
    records_dir: str | os.PathLike,
    *,
    audio_length: int,
    audio_dim: int,
    video_fps: float,
    video_dim: int,
    text_length: int,
    text_dim: int,
    count: int,
    seed: int,
    sample_rate: int = 16_000,
) -> None:
    """Writes `count` random training examples, and a quarter as many of valid and test, with parts.

    Args:
      records_dir: folder, made if missing.
      audio_length, audio_dim, video_dim, text_length, text_dim: sizes of an example.
      video_fps: frames per second, of as many seconds as the latents cover.
      count: training examples.
      seed: of all numbers.
      sample_rate: 16000 or 44100, the front end that previews and samples go through.

    Raises:
      FlowleyError: for impossible sizes, or if the folder has records already.
    """
    if count < 1 or audio_length < 1 or video_fps <= 0.0 or text_length < 8:
        raise FlowleyError(
            f"generated records: {count=} and {audio_length=} must be at least 1, "
            f"{text_length=} at least 8, {video_fps=} positive"
        )
    parts = _parts(audio_length, audio_dim, video_fps, video_dim, text_length, text_dim, seed, sample_rate)
    held_out = max(1, count // _EVAL_SHARE)
    counts = {"train": count, "valid": held_out, "test": held_out}
    splits = {
        split: lambda split=split, number=number: _examples(parts, split, number, seed)
        for split, number in counts.items()
    }
    write_records(records_dir, parts.dims, splits)
    parts.save(records_dir)


def _parts(
    audio_length: int,
    audio_dim: int,
    video_fps: float,
    video_dim: int,
    text_length: int,
    text_dim: int,
    seed: int,
    sample_rate: int,
) -> Parts:
    if sample_rate not in _MELS:
        raise FlowleyError(f"generated records: {sample_rate=} must be one of {sorted(_MELS)}")
    mel = _MELS[sample_rate]
    width = FRAMES_PER_LATENT * mel.bins
    if not 1 <= audio_dim <= width:
        raise FlowleyError(f"generated records: {audio_dim=} must be from 1 to {width}")
    seconds = audio_length * FRAMES_PER_LATENT * mel.hop / sample_rate
    components, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, audio_dim)))
    return Parts(
        seconds=seconds,
        video_encoder=PixelEncoder(fps=video_fps, dim=video_dim),
        text_encoder=HashedTextEncoder(dim=text_dim, max_tokens=text_length),
        codec=PcaCodec(
            mel=mel,
            mean=np.full(width, mel.floor / 2, np.float32),
            components=components.astype(np.float32),
        ),
        vocoder=GriffinLimVocoder(mel=mel),
        latent_mean=np.zeros(audio_dim, np.float32),
        latent_std=np.full(audio_dim, _LATENT_STD, np.float32),
        source=SOURCE,
    )


def _examples(parts: Parts, split: str, count: int, seed: int) -> Iterator[Example]:
    rng = np.random.default_rng([seed, *split.encode()])
    dims = parts.dims
    for index in range(count):
        caption = _CAPTIONS[index % len(_CAPTIONS)]
        text_features, text_lengths = parts.features_of_text([caption])
        latents = _LATENT_STD * rng.standard_normal((dims.audio_length, dims.audio_dim))
        video = rng.standard_normal((dims.video_length, dims.video_dim))
        yield {
            "audio_mean": latents.astype(np.float32),
            "audio_std": np.full(latents.shape, 0.1 * _LATENT_STD, np.float32),
            "video_features": video.astype(np.float32),
            "text_features": text_features[0],
            "text_len": text_lengths[0],
            "id": f"{split}-{index:05d}",
            "caption": caption,
            "label": "generated",
        }
