"""The Python interface: a trained model turns frames and a prompt into sound."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import librosa
import numpy as np
from flax import nnx

from flowley_jax.common.ranges import SEEDS
from flowley_jax.config import SampleConfig
from flowley_jax.data.components import Components
from flowley_jax.errors import FlowleyError
from flowley_jax.flow.sampler import item_key, latents_program, sample_latents
from flowley_jax.model.flowley import abstract_model
from flowley_jax.runs.weights import averaged_weights, with_adapters
from flowley_jax.runs.workdir import load_components, read_config
from flowley_jax.sampling.memory import check_memory, free_device_memory

log = logging.getLogger(__name__)
BATCH_SIZE = 8
# The memory for attention grows with the square of the length. The estimate costs a compilation, so it is
# made only for sounds that are longer than this.
_ESTIMATED_SECONDS = 30.0
# Latents further from the mean of all latents than this many standard deviations are no sound.
_FARTHEST_LATENT = 100.0


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

    def __post_init__(self):
        for name in ("id", "prompt"):
            if not isinstance(getattr(self, name), str):
                raise FlowleyError(f"{name}={getattr(self, name)!r} of a clip must be text, '' for none")

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
        components = load_components(workdir)
        return cls(
            graphdef=abstract_model(weights.config)[0],
            variables=jax.tree.map(jnp.asarray, variables),
            components=components,
            settings=settings,
            weights_path=str(workdir),
            origin={
                "step": weights.step,
                "digest": _digest(variables, components),
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
          FlowleyError: as for `sounds`.
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
          FlowleyError: `seed` or `num_samples` is out of range, a prompt is too long for the text encoder,
            frames have the wrong shape or type, an adaptive solver ran out of steps, a sound is not finite,
            or a long video needs more memory than the device has.
        """
        if fault := SEEDS.fault(seed):
            raise FlowleyError(f"seed={seed} {fault}")
        size = self.batch_size(num_samples)
        for batch in batches(clips, size):
            encoded = [clip if isinstance(clip, EncodedClip) else self.encode(clip) for clip in batch]
            waves = self._sample_batch(encoded, seed=seed, num_samples=num_samples, size=size)
            yield from zip(batch, waves, strict=True)

    @staticmethod
    def batch_size(num_samples: int) -> int:
        """Return how many clips are sampled together.

        Raises:
          FlowleyError: `num_samples` is not a number from 1 on.
        """
        if not isinstance(num_samples, int | np.integer) or num_samples < 1:
            raise FlowleyError(f"num_samples={num_samples!r} must be a whole number, at least 1")
        return max(1, BATCH_SIZE // int(num_samples))

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
        features = tuple(jnp.asarray(np.repeat(array, num_samples, axis=0)) for array in features)
        names = ", ".join(clip.id or "the clip" for clip in clips)
        latents = self._latents(keys, features, names)[: len(clips) * num_samples]
        waves = self._decoded(latents, names)
        seconds = clips[0].video_length / self.components.video_fps
        waves = fit_length(waves, round(seconds * self.components.sample_rate))
        return waves.reshape(len(clips), num_samples, -1)

    def _latents(self, keys: jax.Array, features: tuple[jax.Array, ...], names: str) -> np.ndarray:
        """Return the latents (B, Ta, C) for B keys and the features of B clips of one length."""
        video_length = features[0].shape[1]
        seconds = video_length / self.components.video_fps
        options = {
            "audio_length": self.components.audio_length_for(seconds),
            "guidance": float(self.settings.guidance),
            "solver": self.settings.solver,
        }
        if (len(keys), video_length) not in self._compiled:
            if seconds > _ESTIMATED_SECONDS:
                self._check_memory(keys, features, options, f"{names}: sound of {seconds:.0f} s")
            self._compiled.add((len(keys), video_length))
            log.info("compiling for %d × %.2f s of sound …", len(keys), seconds)
        solution = sample_latents(self.graphdef, self.variables, keys, *features, **options)
        log.info(
            "%d × %.2f s of sound: %d network evaluations", len(keys), seconds, int(solution.evaluations)
        )
        return np.asarray(solution.latent)

    def _check_memory(
        self, keys: jax.Array, features: tuple[jax.Array, ...], options: dict[str, Any], what: str
    ) -> None:
        program: Any = latents_program.lower(self.graphdef, self.variables, keys, *features, **options)
        # Not every backend analyses its programs.
        if analysis := program.compile().memory_analysis():
            check_memory(analysis.temp_size_in_bytes, free_device_memory(), what)

    def _decoded(self, latents: np.ndarray, names: str) -> np.ndarray:
        """Return the waves (B, N) of latents (B, Ta, C).

        Raises:
          FlowleyError: latents or waves are not finite, or the latents are far from those of any sound.
        """
        components = self.components
        distance = np.abs((latents - components.latent_mean) / components.latent_std)
        # A comparison with NaN is false.
        if (distance <= _FARTHEST_LATENT).all():
            try:
                waves = components.decode_audio(latents)
            except librosa.ParameterError:
                # Griffin-Lim refuses magnitudes that are not finite.
                waves = np.full(1, np.nan)
            if np.isfinite(waves).all():
                return waves
        raise FlowleyError(
            f"{names}: the network's result is no sound (its latents are up to {distance.max():.3g} standard "
            f"deviations from the mean); lower the guidance, which is {self.settings.guidance:g}, or use "
            "other weights"
        )


def fit_length(waves: np.ndarray, samples: int) -> np.ndarray:
    """Cut waves (B, N) to (B, samples); if N is smaller, by a fraction of a latent, append silence."""
    missing = max(0, samples - waves.shape[1])
    return np.pad(waves, ((0, 0), (0, missing)))[:, :samples]


def batches(clips: Sequence[AnyClip], size: int) -> Iterator[list[AnyClip]]:
    """Yield batches of at most `size` clips of equal length."""
    by_length: dict[int, list[AnyClip]] = {}
    for clip in clips:
        by_length.setdefault(clip.video_length, []).append(clip)
    for group in by_length.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _digest(variables: Any, components: Components) -> str:
    digest = hashlib.sha256(components.identity.encode())
    for leaf in jax.tree.leaves(variables):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
