"""The Python interface: a trained model turns frames and a prompt into sound."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowley_jax.config import SampleConfig
from flowley_jax.data.components import Components, components_file
from flowley_jax.flow.sampler import item_key, sample_latents
from flowley_jax.model.flowley import abstract_model
from flowley_jax.runs.weights import averaged_weights, with_adapters
from flowley_jax.runs.workdir import components_folder, read_config

log = logging.getLogger(__name__)
BATCH_SIZE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """Silent clip to sample sound for.

    Attributes:
      id: with the seed, decides the random draw; the same id gives the same sound in any batch.
      frames: uint8 (Tv, H, W, 3) at the rate `Sampler.components.video_fps`.
      prompt: text that describes the sound; empty for none.
    """

    id: str
    frames: np.ndarray
    prompt: str = ""

    @property
    def video_length(self) -> int:
        """Number of frames Tv."""
        return len(self.frames)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedClip:
    """The features of a clip, which condition its sound.

    Attributes:
      id: id of the clip.
      video: float32 (Tv, video_dim).
      text: float32 (Tt, text_dim).
      text_len: number of tokens of the prompt.
    """

    id: str
    video: np.ndarray
    text: np.ndarray
    text_len: int

    @property
    def video_length(self) -> int:
        """Number of frames Tv."""
        return len(self.video)


AnyClip = TypeVar("AnyClip", Clip, EncodedClip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A trained model with the components that connect it to media: see `from_run` and `from_published`.

    Attributes:
      graphdef, variables: the network, split; its parameters first, then its constants.
      components: encoders, codec and vocoder of the data set that the network was trained on.
      settings: guidance scale and solver.
      weights_path: where the network's weights were read.
      origin: identifies weights and components: the step and a digest, or the digests of the bundles.
    """

    graphdef: nnx.GraphDef
    variables: tuple[Any, Any]
    components: Components
    settings: SampleConfig
    weights_path: str
    origin: Mapping[str, Any]
    # Batch sizes and video lengths that the network is compiled for.
    _compiled: set[tuple[int, int]] = dataclasses.field(
        default_factory=set, init=False, repr=False, compare=False
    )

    @classmethod
    def from_run(
        cls,
        workdir: str | Path,
        *,
        settings: SampleConfig | None = None,
        adapter: str | Path | None = None,
        adapter_factor: float = 1.0,
    ) -> "Sampler":
        """Load the averaged weights and the components of a training run.

        Args:
          workdir: folder of the run.
          settings: guidance scale, solver and averaging length; by default those of the run's configuration.
          adapter: file of LoRA adapters to add to the weights.
          adapter_factor: strength of the adapters: 1 as trained, 0 without effect.

        Raises:
          FlowleyError: the folder holds no run, or the run has no averaged weights yet.
        """
        workdir = Path(workdir)
        settings = settings or read_config(workdir).sample
        weights = averaged_weights(workdir, sigma_rel=settings.sigma_rel)
        if adapter:
            weights = with_adapters(weights, Path(adapter), factor=adapter_factor)
        variables = (weights.parameters, weights.constants)
        folder = components_folder(workdir)
        return cls(
            graphdef=abstract_model(weights.config)[0],
            variables=jax.tree.map(jnp.asarray, variables),
            components=Components.load(folder),
            settings=settings,
            weights_path=str(workdir),
            origin={
                "step": weights.step,
                "digest": _digest(variables, components_file(folder)),
            },
        )

    @classmethod
    def from_published(
        cls,
        folder: str | Path,
        *,
        settings: SampleConfig | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> "Sampler":
        """Load the published system from a folder of bundles, as `flowley_jax.convert` writes them.

        Args:
          folder: folder with one bundle per model.
          settings: guidance scale and solver. The averaging length has no effect: published weights are
            already averages.
          dtype: compute type of all stages.

        Raises:
          FlowleyError: bundles are missing or damaged, or do not fit together.
        """
        # Imported here, because that module imports this one.
        from flowley_jax.sampling.published import load_published

        return load_published(folder, settings=settings, dtype=dtype)

    def sound(
        self, frames: np.ndarray, prompt: str = "", *, clip_id: str = "", seed: int = 0, num_samples: int = 1
    ) -> np.ndarray:
        """Sample sounds for one clip.

        Args:
          frames: uint8 (Tv, H, W, 3) at the rate `components.video_fps`.
          prompt: text that describes the sound; empty for none.
          clip_id: with the seed, decides the random draw. The command line uses the file name without its
            extension.
          seed: seed of the random draw.
          num_samples: number of sounds.

        Returns:
          float32 (num_samples, N) at `components.sample_rate`, as long as the video.

        Raises:
          FlowleyError: the prompt is too long for the text encoder, or an adaptive solver ran out of steps.
        """
        clip = Clip(id=clip_id, frames=frames, prompt=prompt)
        _, waves = next(self.sounds([clip], seed=seed, num_samples=num_samples))
        return waves

    def sounds(
        self, clips: Sequence[AnyClip], *, seed: int = 0, num_samples: int = 1
    ) -> Iterator[tuple[AnyClip, np.ndarray]]:
        """Sample sounds for many clips; clips of equal length share a batch.

        Args:
          clips: clips, or clips that `encode` has encoded.
          seed: seed of the random draws.
          num_samples: number of sounds per clip.

        Yields:
          A clip and its waves, float32 (num_samples, N), as soon as they are sampled.

        Raises:
          FlowleyError: a prompt is too long for the text encoder, or an adaptive solver ran out of steps.
        """
        size = max(1, BATCH_SIZE // num_samples)
        for batch in _batches(clips, size):
            encoded = [clip if isinstance(clip, EncodedClip) else self.encode(clip) for clip in batch]
            waves = self._sample_batch(encoded, seed=seed, num_samples=num_samples, size=size)
            yield from zip(batch, waves, strict=True)

    def encode(self, clip: Clip) -> EncodedClip:
        """Return the features of a clip; without a prompt, its text features are the model's empty text.

        Raises:
          FlowleyError: the prompt is too long for the text encoder.
        """
        text, text_len = self.components.features_of_text([clip.prompt])
        if not clip.prompt.strip():
            empty_text = np.asarray(self.variables[1]["empty_text"][...], text.dtype)
            text = np.broadcast_to(empty_text, text.shape)
        video = self.components.features_of_video(clip.frames)
        return EncodedClip(id=clip.id, video=video, text=text[0], text_len=int(text_len[0]))

    def _sample_batch(
        self, clips: Sequence[EncodedClip], *, seed: int, num_samples: int, size: int
    ) -> np.ndarray:
        """Return the waves (B, num_samples, N) of B clips of one length."""
        # A short last batch is padded, so that it runs the program that is already compiled. A single clip is
        # common, and not worth the work of a whole batch.
        padding = [clips[-1]] * (size - len(clips)) if len(clips) > 1 else []
        padded = [*clips, *padding]
        features = (
            np.stack([clip.video for clip in padded]),
            np.stack([clip.text for clip in padded]),
            np.asarray([clip.text_len for clip in padded], np.int32),
        )
        keys = jnp.stack([item_key(seed, clip.id, n) for clip in padded for n in range(num_samples)])
        video_length = clips[0].video_length
        seconds = video_length / self.components.video_fps
        if (len(keys), video_length) not in self._compiled:
            self._compiled.add((len(keys), video_length))
            log.info("compiling for %d × %.2f s of sound …", len(keys), seconds)
        solution = sample_latents(
            self.graphdef,
            self.variables,
            keys,
            *(jnp.asarray(np.repeat(array, num_samples, axis=0)) for array in features),
            audio_length=self.components.audio_length_for(seconds),
            guidance=self.settings.guidance,
            solver=self.settings.solver,
        )
        log.info(
            "%d × %.2f s of sound: %d network evaluations", len(keys), seconds, int(solution.evaluations)
        )
        latents = np.asarray(solution.latent)[: len(clips) * num_samples]
        waves = self.components.decode_audio(latents)
        waves = fit_length(waves, round(seconds * self.components.sample_rate))
        return waves.reshape(len(clips), num_samples, -1)


def fit_length(waves: np.ndarray, samples: int) -> np.ndarray:
    """Cut waves (B, N) to (B, samples); if N is smaller, by a fraction of a latent, append silence."""
    missing = max(0, samples - waves.shape[1])
    return np.pad(waves, ((0, 0), (0, missing)))[:, :samples]


def _batches(clips: Sequence[AnyClip], size: int) -> Iterator[list[AnyClip]]:
    """Yield batches of at most `size` clips of equal length."""
    by_length: dict[int, list[AnyClip]] = {}
    for clip in clips:
        by_length.setdefault(clip.video_length, []).append(clip)
    for group in by_length.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _digest(variables: Any, components: Path) -> str:
    digest = hashlib.sha256(components.read_bytes())
    for leaf in jax.tree.leaves(variables):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
