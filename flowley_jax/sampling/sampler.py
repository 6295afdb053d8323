"""The Python interface: a trained model turns frames and a prompt into sound."""

import dataclasses
import functools
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flowley_jax.common.devices import BATCH_AXES
from flowley_jax.common.durations import format_duration
from flowley_jax.common.librosa_loading import load_librosa_in_background
from flowley_jax.config import SampleConfig
from flowley_jax.data.components import Components
from flowley_jax.errors import FlowleyError
from flowley_jax.flow.sampler import SamplingProgram, WindowBatch, latents_program, sample_latents
from flowley_jax.flow.solver import ADAPTIVE
from flowley_jax.flow.windows import WindowLengths
from flowley_jax.model.flowley import abstract_model
from flowley_jax.runs.hub_models import PREFIX, local_folder
from flowley_jax.runs.included_model import INCLUDED
from flowley_jax.runs.weights import averaged_weights, with_adapters
from flowley_jax.runs.workdir import load_components, read_config
from flowley_jax.sampling.batches import (
    AnyWindows,
    Gathered,
    Track,
    compiled_room_for,
    latents_of,
    most_together,
    packed,
    rooms,
    window_batch,
)
from flowley_jax.sampling.clips import Clip, ClipEncoder, EncodedClip, check_seed
from flowley_jax.sampling.decoding import decode_tracks
from flowley_jax.sampling.memory import check_memory, free_device_memory

log = logging.getLogger(__name__)
# Windows that the network computes at once, rounded up to a multiple of the devices.
WINDOWS_AT_ONCE = 8
# Most clips whose features are in memory at once.
GROUP = 32
# A process takes this share of the clips that are left, so that it can share them with others that join.
_SHARE = 0.25
# The estimate of memory costs a compilation, so it is made only for windows that are longer than this.
_ESTIMATED_SECONDS = 30.0
# Seconds between two lines of progress.
_LOGGED_SECONDS = 10.0

AnyClip = TypeVar("AnyClip", Clip, EncodedClip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A trained model with the components that connect it to media: see `from_run` and `from_published`.

    Attributes:
      graphdef, variables: the network, split; its parameters first, then its constants.
      components: encoders, codec and vocoder of the data set that the network was trained on.
      settings: guidance and solver.
      weights_path: where the network's weights were read.
      origin: identifies weights and components: the step and a digest, or the digests of the bundles.
      bad_parameters: parameters of the worse network of autoguidance; None without one.
    """

    graphdef: nnx.GraphDef
    variables: tuple[Any, Any]
    components: Components
    settings: SampleConfig
    weights_path: str
    origin: Mapping[str, Any]
    bad_parameters: Any = None
    # Numbers of windows that the network is compiled for.
    _compiled: set[int] = dataclasses.field(default_factory=set, init=False, repr=False, compare=False)

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
          workdir: folder of the run, or of a shared model; hf:ORG/NAME for one on the Hugging Face hub.
          settings: guidance, solver and averaging length; by default those of the run's configuration.
          adapter: file of LoRA adapters to add to the weights.
          adapter_factor: strength of the adapters: 1 as trained, 0 without effect.

        Raises:
          FlowleyError: the folder holds no run, or the run has no averaged weights yet; the solver or the
            guidance needs what the run does not have.
        """
        workdir = local_folder(workdir)
        settings = settings or read_config(workdir).sample
        components = load_components(workdir)
        if components.vocoder.runs_on_host:
            load_librosa_in_background()
        weights = averaged_weights(workdir, sigma_rel=settings.sigma_rel)
        check_solver(settings, weights.are_flow_map, workdir)
        if adapter:
            weights = with_adapters(weights, Path(adapter), factor=adapter_factor)
        variables = (weights.parameters, weights.constants)
        components = dataclasses.replace(components, log_mel_max=weights.log_mel_max)
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
            bad_parameters=_bad_parameters(workdir, settings),
        )

    @classmethod
    def from_pretrained(
        cls, name: str | Path = INCLUDED, *, settings: SampleConfig | None = None
    ) -> "Sampler":
        """Load a shared model: its repository ORG/NAME on the Hugging Face hub, or a folder.

        Args:
          name: the repository or the folder; by default the model that comes with the package.
          settings: guidance and solver; by default those of the model.

        Raises:
          FlowleyError: there is no such model, it cannot be reached, or it is damaged.
        """
        is_local = Path(name).is_dir() or str(name).startswith(PREFIX)
        return cls.from_run(name if is_local else f"{PREFIX}{name}", settings=settings)

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
          settings: guidance and solver. The averaging length has no effect: published weights are
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
        """Sample sounds for many clips; clips of different lengths share batches.

        A clip that is longer than a window is sampled in overlapping windows, whose velocities are blended;
        see `flowley_jax.flow.windows`. A shorter one is filled by its last frame, and its sound is cut.

        Args:
          clips: clips, or clips that `encode` has encoded.
          seed: seed of the random draws.
          num_samples: number of sounds per clip.

        Yields:
          A clip and its waves, float32 (num_samples, N), as soon as they are sampled, which is not always in
          the order of the clips. Samples may exceed ±1: the level is the model's.

        Raises:
          FlowleyError: `seed` or `num_samples` is out of range, a prompt is too long for the text encoder,
            frames have the wrong shape or type, an adaptive solver ran out of steps, a sound is not finite,
            or a window needs more memory than the device has.
        """
        check_seed(seed)
        if not isinstance(num_samples, int | np.integer) or num_samples < 1:
            raise FlowleyError(f"num_samples={num_samples!r} must be a whole number, at least 1")
        for start in range(0, len(clips), GROUP):
            group = clips[start : start + GROUP]
            encoded = [clip if isinstance(clip, EncodedClip) else self.encode(clip) for clip in group]
            originals = {id(features): clip for features, clip in zip(encoded, group, strict=True)}
            gathered = Gathered(num_samples)
            for batch in self.batches(encoded, num_samples):
                for track, wave in self.sample(batch, seed=seed):
                    if (waves := gathered.add(track, wave)) is not None:
                        yield originals[id(track.clip)], waves

    def encode(self, clip: Clip) -> EncodedClip:
        """Return the features of a clip; see `ClipEncoder`."""
        return self._encoder(clip)

    def batches(self, clips: Iterable[AnyWindows], num_samples: int = 1) -> Iterator[list[Track[AnyWindows]]]:
        """Divide the sounds of clips into batches for `sample`.

        With an adaptive solver each sound is a batch of its own, since the sounds of a batch have their steps
        in common.
        """
        tracks = [Track(clip, number) for clip in clips for number in range(num_samples)]
        if self.settings.solver.name in ADAPTIVE:
            together = 1
        else:
            together = (
                self.rooms[-1] if all(len(track) == 1 for track in tracks) else most_together(self.rooms)
            )
        yield from packed(tracks, together)

    def sample(
        self,
        batch: Sequence[Track[EncodedClip]],
        *,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> list[tuple[Track[EncodedClip], np.ndarray]]:
        """Return each sound of a batch with its wave (N,) float32.

        Args:
          batch: one of `batches`.
          seed: seed of the random draws.
          progress: called with the number of each solver step that is done. A fixed-step solver then runs
            step by step, and an exception raised in it stops the sampling.

        Raises:
          FlowleyError: as for `sounds`.
        """
        latents = self._latents(batch, seed, progress)
        waves = decode_tracks(self.components, batch, latents, rooms=self.rooms)
        return list(zip(batch, waves, strict=True))

    @functools.cached_property
    def window(self) -> WindowLengths:
        """The size of a window."""
        components, chosen = self.components, self.settings.window
        seconds = components.seconds if chosen is None else chosen
        frames = components.video_length_for(seconds)
        if not frames:
            raise FlowleyError(
                f"window={seconds:g} s is shorter than a frame of the video encoder, which reads "
                f"{components.video_fps:g} per second"
            )
        return WindowLengths(
            video=frames,
            # Latents must last as long as the frames, whose number is rounded.
            audio=components.audio_length_for(seconds if chosen is None else frames / components.video_fps),
            latents_per_frame=components.codec.latent_rate / components.video_fps,
        )

    @functools.cached_property
    def _encoder(self) -> ClipEncoder:
        constants = self.variables[1]
        return ClipEncoder(
            components=self.components,
            empty_video=np.asarray(constants["empty_video"][...], np.float32),
            empty_text=np.asarray(constants["empty_text"][...]),
            window=self.window,
            overlap=self.settings.overlap,
            negative_prompt=None if self.settings.autoguidance_step else self.settings.negative_prompt,
        )

    @functools.cached_property
    def mesh(self) -> Mesh | None:
        """The devices of this process, over which windows are divided; None for one device."""
        devices = jax.local_devices()
        return Mesh(np.array(devices), BATCH_AXES[:1]) if len(devices) > 1 else None

    @functools.cached_property
    def rooms(self) -> list[int]:
        """Numbers of windows that a batch may have room for; see `batches.rooms`."""
        return rooms(self.mesh.size if self.mesh else 1, WINDOWS_AT_ONCE)

    @functools.cached_property
    def device_variables(self) -> tuple[Any, ...]:
        """The weights on the devices that need them."""
        return self._on_devices(self.variables)

    @functools.cached_property
    def device_bad_parameters(self) -> Any:
        """The weights of the worse network of autoguidance on the devices; None without one."""
        return self._on_devices(self.bad_parameters)

    def _on_devices(self, tree: Any) -> Any:
        if self.mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def texts(self, room: int) -> int:
        """Return how many clips may share a batch with room for so many windows."""
        return min(room, most_together(self.rooms))

    def runs_in_steps(self, room: int) -> bool:
        """Return whether a batch of this room runs step by step, because it takes long, with log lines."""
        return room > most_together(self.rooms)

    def program(self, room: int) -> SamplingProgram:
        """Return the settings of the program for batches with room for so many windows."""
        return SamplingProgram(
            video_length=self.window.video,
            guidance=self.settings.guidance_form,
            solver=self.settings.solver,
            at_once=min(room, self.rooms[-1]),
            mesh=self.mesh,
        )

    def _latents(
        self, batch: Sequence[Track[EncodedClip]], seed: int, progress: Callable[[int], None] | None
    ) -> list[np.ndarray]:
        """Return the latents (Ta', C) of each sound of a batch."""
        count = sum(map(len, batch))
        room = compiled_room_for(count, self.rooms, self._compiled)
        program = self.program(room)
        arrays = window_batch(batch, room=room, texts=self.texts(room), seed=seed)
        names = ", ".join(dict.fromkeys(track.clip.id or "the clip" for track in batch))
        if room not in self._compiled:
            self._check_memory(arrays, program, names)
            self._compiled.add(room)
            log.info("compiling for %s …", "1 window" if room == 1 else f"{room} windows")
        log.info(
            "sampling %s, %.2f s in %s …",
            "1 sound" if len(batch) == 1 else f"{len(batch)} sounds",
            sum(track.clip.seconds for track in batch),
            "1 window" if count == 1 else f"{count} windows",
        )
        if progress is None and self.runs_in_steps(room):
            progress = _Progress(names, self.settings.solver.steps)
        solution = sample_latents(
            self.graphdef,
            self.device_variables,
            arrays,
            self.device_bad_parameters,
            program=program,
            progress=progress,
        )
        log.info("sampled with %d network evaluations per window", int(solution.evaluations))
        return latents_of(batch, np.asarray(solution.latent))

    def _check_memory(self, arrays: WindowBatch, program: SamplingProgram, names: str) -> None:
        """Check that the network fits into memory if windows are long: attention grows with their square."""
        seconds = self.window.video / self.components.video_fps
        if seconds <= _ESTIMATED_SECONDS:
            return
        compiled: Any = latents_program.lower(
            self.graphdef, self.device_variables, arrays, self.device_bad_parameters, program=program
        ).compile()
        # Not every backend analyses its programs.
        if analysis := compiled.memory_analysis():
            what = f"{names}: {program.at_once} × {seconds:.0f} s of sound"
            check_memory(analysis.temp_size_in_bytes, free_device_memory(), what)


def group_size(left: int, batch: int) -> int:
    """Return how many clips to encode together, in whole batches where possible.

    Args:
      left: number of clips that are left.
      batch: number of clips that are sampled at once.
    """
    return min(left, GROUP, batch * max(1, int(_SHARE * left / batch)))


def check_solver(settings: SampleConfig, are_flow_map: bool, source: object) -> None:
    """Check that weights can do the steps of the solver.

    Args:
      settings: the solver.
      are_flow_map: whether the weights were trained as a flow map.
      source: where they come from.

    Raises:
      FlowleyError: the solver is for flow maps, and the weights are none.
    """
    if settings.solver.name == "flow_map" and not are_flow_map:
        raise FlowleyError(
            f"{source}: sample.solver.name='flow_map' needs weights that were trained with "
            "flow.map.enabled=True, as by the option few_steps of the configurations; take euler for these"
        )
    if are_flow_map and settings.guidance_form.branches > 1:
        log.warning("%s: guidance is part of these weights already; sample with guidance 1", source)


def _bad_parameters(workdir: Path, settings: SampleConfig) -> Any:
    """Return the parameters of the worse network of autoguidance; None without autoguidance."""
    if not settings.autoguidance_step:
        return None
    length = settings.autoguidance_sigma_rel or settings.sigma_rel
    bad = averaged_weights(workdir, sigma_rel=length, step=settings.autoguidance_step)
    return jax.tree.map(jnp.asarray, bad.parameters)


class _Progress:
    """Logs from time to time how much of a long sound is done."""

    def __init__(self, names: str, steps: int):
        self._names, self._steps = names, steps
        self._logged = time.monotonic()
        # The first step includes the compilation.
        self._first: float | None = None

    def __call__(self, step: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif now - self._logged >= _LOGGED_SECONDS and step < self._steps:
            self._logged = now
            left = (now - self._first) / (step - 1) * (self._steps - step)
            log.info("%s: step %d/%d, %s left", self._names, step, self._steps, format_duration(left))


def _digest(variables: Any, components: Components) -> str:
    digest = hashlib.sha256(components.identity.encode())
    if components.log_mel_max is not None:
        digest.update(components.log_mel_max.tobytes())
    if components.wave_gain != 1.0:
        digest.update(np.float64(components.wave_gain).tobytes())
    for leaf in jax.tree.leaves(variables):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
