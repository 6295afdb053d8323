"""Records of random numbers in any sizes, for trying out a configuration before there is data.

They hold no audio or video, only numbers of plausible scale. Their `components.json` names real components of
the same sizes, so that every later step (training, previews, sampling) runs.
"""

import os
from collections.abc import Iterator

import numpy as np

from flowley_jax.audio.griffin_lim import GriffinLimVocoder
from flowley_jax.audio.mel import MEL_16K, MEL_44K
from flowley_jax.audio.pca import PcaCodec
from flowley_jax.audio.protocols import FRAMES_PER_LATENT
from flowley_jax.data.components import Components
from flowley_jax.data.record import Example, write_records
from flowley_jax.encoders.hashed_text import HashedTextEncoder
from flowley_jax.encoders.pixels import PixelEncoder
from flowley_jax.errors import FlowleyError

SOURCE = "generated at random, only for trying out a configuration"
_MELS = {mel.sample_rate: mel for mel in (MEL_16K, MEL_44K)}
_CAPTIONS = ("a ball bounces on the floor", "a bell rings", "rain")
_MIN_TEXT_LENGTH = 8
_LATENT_STD = 0.5
# One valid and one test example for this many training examples.
_TRAIN_PER_HELD_OUT = 4


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
    """Write random records and their components.

    The train split has `count` examples; valid and test have a quarter as many each.

    Args:
      records_dir: folder of the records; it is created if it does not exist.
      audio_length, audio_dim, video_dim, text_length, text_dim: sizes of an example.
      video_fps: frames per second; the video is as long as the latents.
      count: number of training examples.
      seed: seed of all numbers.
      sample_rate: 16000 or 44100, the sample rate of the mel front end for previews and samples.

    Raises:
      FlowleyError: a size is out of range, or the folder already has records.
    """
    if count < 1 or audio_length < 1 or video_fps <= 0.0 or text_length < _MIN_TEXT_LENGTH:
        raise FlowleyError(
            f"generated records: {count=} and {audio_length=} must be at least 1, "
            f"{text_length=} at least {_MIN_TEXT_LENGTH}, {video_fps=} positive"
        )
    components = _components(
        audio_length=audio_length,
        audio_dim=audio_dim,
        video_encoder=PixelEncoder(fps=video_fps, dim=video_dim),
        text_encoder=HashedTextEncoder(dim=text_dim, max_tokens=text_length),
        sample_rate=sample_rate,
        seed=seed,
    )
    held_out = max(1, count // _TRAIN_PER_HELD_OUT)
    counts = {"train": count, "valid": held_out, "test": held_out}
    splits = {
        split: lambda split=split, number=number: _examples(components, split, number, seed)
        for split, number in counts.items()
    }
    write_records(records_dir, components.dims, splits)
    components.save(records_dir)


def _components(
    *,
    audio_length: int,
    audio_dim: int,
    video_encoder: PixelEncoder,
    text_encoder: HashedTextEncoder,
    sample_rate: int,
    seed: int,
) -> Components:
    if sample_rate not in _MELS:
        raise FlowleyError(f"generated records: {sample_rate=} must be one of {sorted(_MELS)}")
    mel = _MELS[sample_rate]
    width = FRAMES_PER_LATENT * mel.bins
    if not 1 <= audio_dim <= width:
        raise FlowleyError(f"generated records: {audio_dim=} must be from 1 to {width}")
    seconds = audio_length * FRAMES_PER_LATENT * mel.hop / sample_rate
    orthonormal, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, audio_dim)))
    return Components(
        seconds=seconds,
        video_encoder=video_encoder,
        text_encoder=text_encoder,
        codec=PcaCodec(
            mel=mel,
            mean=np.full(width, mel.floor / 2, np.float32),
            components=orthonormal.astype(np.float32),
        ),
        vocoder=GriffinLimVocoder(mel=mel),
        latent_mean=np.zeros(audio_dim, np.float32),
        latent_std=np.full(audio_dim, _LATENT_STD, np.float32),
        source=SOURCE,
    )


def _examples(components: Components, split: str, count: int, seed: int) -> Iterator[Example]:
    rng = np.random.default_rng([seed, *split.encode()])
    dims = components.dims
    for index in range(count):
        caption = _CAPTIONS[index % len(_CAPTIONS)]
        text_features, text_lengths = components.features_of_text([caption])
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
