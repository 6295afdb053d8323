"""The Python interface: arrays in, arrays out."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowley_jax.config import SampleConfig
from flowley_jax.data.parts import PARTS_FILE, Parts
from flowley_jax.sampling.keys import item_key
from flowley_jax.sampling.latents import sample_latents
from flowley_jax.training.weights import averaged_weights, with_adapters
from flowley_jax.training.workdir import PARTS, read_config

log = logging.getLogger(__name__)
BATCH_SIZE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A silent clip to be given sound.

    Attributes:
      id: decides the random draw together with the seed; the same id gives the same sound in any batch.
      frames: uint8 (T, H, W, 3) at the rate `Sampler.parts.video_fps`.
      prompt: what is to be heard; empty for none.
    """

    id: str
    frames: np.ndarray
    prompt: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A trained model with everything between media and latents.

    Attributes:
      parts: encoders, codec and vocoder of the model's data set.
      settings: guidance scale and solver.
      place: where the network's weights were read.
      origin: what the sounds are made with: step of the last snapshot, digest of weights and parts.
    """

    graphdef: nnx.GraphDef
    variables: tuple[Any, Any]
    parts: Parts
    settings: SampleConfig
    place: str
    origin: Mapping[str, Any]

    @classmethod
    def load(
        cls,
        workdir: str | Path,
        *,
        settings: SampleConfig | None = None,
        adapter: str | Path | None = None,
        adapter_factor: float = 1.0,
    ) -> "Sampler":
        """Reads a training folder: averaged weights of `settings.sigma_rel`, and the parts.

        Args:
          settings: in place of those of the run's configuration.
          adapter: file of LoRA adapters to add, `adapter_factor` times.

        Raises:
          FlowleyError: there is no run in the folder, or it has no averaged weights yet.
        """
        workdir = Path(workdir)
        config = read_config(workdir)
        settings = settings or config.sample
        weights = averaged_weights(workdir, sigma_rel=settings.sigma_rel)
        if adapter:
            weights = with_adapters(weights, Path(adapter), factor=adapter_factor)
        variables = (weights.parameters, weights.constants)
        return cls(
            graphdef=weights.graphdef,
            variables=jax.tree.map(jnp.asarray, variables),
            parts=Parts.load(workdir / PARTS),
            settings=settings,
            place=str(workdir),
            origin={"step": weights.step, "digest": _digest(variables, workdir / PARTS / PARTS_FILE)},
        )

    def sound(
        self, frames: np.ndarray, prompt: str = "", *, clip_id: str = "", seed: int = 0, num_samples: int = 1
    ) -> np.ndarray:
        """Sounds for one clip: float32 (num_samples, N) at `parts.sample_rate`, as long as the video.

        Args:
          frames: uint8 (T, H, W, 3) at the rate `parts.video_fps`.
          clip_id: decides the draw together with the seed; the command line takes the name of the file
            without its ending.
        """
        clip = Clip(id=clip_id, frames=frames, prompt=prompt)
        _, waves = next(self.sounds([clip], seed=seed, num_samples=num_samples))
        return waves

    def sounds(
        self, clips: Sequence[Clip], *, seed: int = 0, num_samples: int = 1
    ) -> Iterator[tuple[Clip, np.ndarray]]:
        """Sounds for many clips, yielded as they are made, clips of equal length in one batch.

        Yields: a clip and its waves, float32 (num_samples, N).
        """
        by_length: dict[int, list[Clip]] = {}
        for clip in clips:
            by_length.setdefault(len(clip.frames), []).append(clip)
        for length, group in by_length.items():
            size = max(1, BATCH_SIZE // num_samples)
            for start in range(0, len(group), size):
                part = group[start : start + size]
                waves = self._batch(part, length, seed=seed, num_samples=num_samples, size=size)
                yield from zip(part, waves, strict=True)

    def _batch(
        self, clips: Sequence[Clip], length: int, *, seed: int, num_samples: int, size: int
    ) -> np.ndarray:
        # A short last batch is filled up, so that it runs the program that is compiled already.
        padded = [*clips, *[clips[-1]] * (size - len(clips))] if len(clips) > 1 or size == 1 else list(clips)
        video, text, text_len = self.features(padded)
        keys = jnp.stack([item_key(seed, clip.id, n) for clip in padded for n in range(num_samples)])
        seconds = length / self.parts.video_fps
        solution = sample_latents(
            self.graphdef,
            self.variables,
            keys,
            *(jnp.asarray(np.repeat(array, num_samples, axis=0)) for array in (video, text, text_len)),
            audio_length=self.parts.audio_length_for(seconds),
            guidance=self.settings.guidance,
            solver=self.settings.solver,
        )
        log.info(
            "%d × %.2f s of sound: %d network evaluations", len(keys), seconds, int(solution.evaluations)
        )
        used = np.asarray(solution.latent)[: len(clips) * num_samples]
        waves = fit_length(self.parts.decode_audio(used), round(seconds * self.parts.sample_rate))
        return waves.reshape(len(clips), num_samples, -1)

    def features(self, clips: Sequence[Clip]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Video (B, Tv, video_dim), text (B, Tt, text_dim) and text_len (B,) of clips of one length.

        Clips without a prompt get the empty text feature.
        """
        video = np.stack([self.parts.features_of_video(clip.frames) for clip in clips])
        text, text_len = self.parts.features_of_text([clip.prompt for clip in clips])
        empty = np.asarray(self.variables[1]["empty_text"][...])
        without = np.asarray([not clip.prompt.strip() for clip in clips])
        return video, np.where(without[:, None, None], empty, text).astype(np.float32), text_len


def _digest(variables, parts: Path) -> str:
    digest = hashlib.sha256(parts.read_bytes())
    for leaf in jax.tree.leaves(variables):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def fit_length(waves: np.ndarray, samples: int) -> np.ndarray:
    """Cuts (B, N) to (B, samples), or fills the fraction of a latent that is missing with silence."""
    missing = max(0, samples - waves.shape[1])
    return np.pad(waves, ((0, 0), (0, missing)))[:, :samples]
