"""Configuration of a training run as typed values."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from flowley_jax.common.typed import check_choices, free_on_resume, is_free_on_resume, typed_from
from flowley_jax.errors import FlowleyError
from flowley_jax.flow.losses import LossConfig
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.flow.time_sampling import TimeConfig
from flowley_jax.model.config import ModelConfig


def _check_sigma_rel(name: str, value: float) -> None:
    # At 1/√12 the power function is the plain average of the whole run, the longest possible.
    if not 0.0 < value < 12**-0.5:
        raise FlowleyError(f"{name}={value} must be between 0 and 0.288, relative to the length of the run")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training records and how batches are drawn from them.

    Attributes:
      records: folder of the records from data_prep.extract, with a train split, and a valid split if the run
        is to validate.
      generate: number of random records to train on instead, to try a configuration out; they are written
        into the run's folder. 0 trains on real records.
      generate_seconds: length of generated records, and of the clips that flowley_jax.compile assumes, in
        seconds.
      generate_text_length: text tokens of generated records, and of the clips that flowley_jax.compile
        assumes.
      generate_sample_rate: sample rate of generated records in Hz.
      latent_rate: audio latents per second of generated records, and of the clips that flowley_jax.compile
        assumes.
      batch_size: examples per step over all devices.
      num_workers: processes that read records ahead; 0 reads them in the training process.
      captions: sources of captions to draw from: "table" for the clip table's, and others in the records.
        A clip without a caption from any of them uses the table's.
      caption_weights: relative weight of each source of captions.
    """

    records: str = free_on_resume("")
    generate: int = free_on_resume(0)
    generate_seconds: float = free_on_resume(8.0)
    generate_text_length: int = free_on_resume(77)
    generate_sample_rate: int = free_on_resume(16_000)
    latent_rate: float = free_on_resume(31.25)
    batch_size: int = 512
    num_workers: int = free_on_resume(0)
    captions: tuple[str, ...] = ("table",)
    caption_weights: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        for name, least in (("batch_size", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise FlowleyError(f"data.{name}={getattr(self, name)} must be at least {least}")
        if len(self.captions) != len(self.caption_weights) or not self.captions:
            raise FlowleyError(
                f"data.captions={self.captions} needs as many weights, found {self.caption_weights}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Training target: times, losses, coupling and condition dropout.

    Attributes:
      immiscible: assign noise samples to latents so that the sum of their distances in a group is minimal
        (immiscible diffusion).
      coupling_group: consecutive examples of a batch that are coupled with each other; a smaller batch is one
        group. The published run used 256.
      condition_dropout: probability with which video and text are dropped, independently, as guidance needs.
    """

    time: TimeConfig = TimeConfig()
    loss: LossConfig = LossConfig()
    immiscible: bool = True
    coupling_group: int = 256
    condition_dropout: float = 0.1

    def __post_init__(self):
        if self.coupling_group < 1:
            raise FlowleyError(f"flow.coupling_group={self.coupling_group} must be at least 1")
        if not 0.0 <= self.condition_dropout <= 1.0:
            raise FlowleyError(f"flow.condition_dropout={self.condition_dropout} must be in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with global-norm clipping and a learning-rate schedule.

    Attributes:
      learning_rate: learning rate at the end of warm-up.
      beta1: decay rate of the first moment.
      beta2: decay rate of the second moment.
      weight_decay: decoupled weight decay.
      clip_norm: global norm to which gradients are clipped.
      warmup_steps: steps of linear warm-up, by the factor (step + 1) / (warmup_steps + 1).
      schedule: "steps" multiplies by decay_factor at each of decay_steps; "cosine" falls to zero at the last
        training step.
      decay_steps: steps at which "steps" lowers the learning rate, counted from the end of warm-up. With the
        default train.steps, the run ends before the second one.
      decay_factor: factor by which "steps" lowers the learning rate each time.
    """

    learning_rate: float = 1.5e-4
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 1e-6
    clip_norm: float = 1.0
    warmup_steps: int = 1000
    schedule: Literal["steps", "cosine"] = "steps"
    decay_steps: tuple[int, ...] = (180_000, 300_000)
    decay_factor: float = 0.1

    def __post_init__(self):
        check_choices(self, "optim")
        if self.learning_rate <= 0.0:
            raise FlowleyError(f"optim.learning_rate={self.learning_rate} must be positive")
        if self.clip_norm <= 0.0:
            raise FlowleyError(f"optim.clip_norm={self.clip_norm} must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Averages of the weights: tracks for post-hoc EMA (Karras et al. 2024, arXiv 2312.02696).

    Attributes:
      sigma_rels: length σ_rel of each track, relative to the run; other lengths are computed from them later.
      snapshot_every: steps between stored snapshots of the tracks.
    """

    sigma_rels: tuple[float, ...] = (0.05, 0.10)
    snapshot_every: int = 5000

    def __post_init__(self):
        if not self.sigma_rels:
            raise FlowleyError("ema.sigma_rels=() must name at least one track")
        for sigma_rel in self.sigma_rels:
            _check_sigma_rel("ema.sigma_rels", sigma_rel)
        if self.snapshot_every < 1:
            raise FlowleyError(f"ema.snapshot_every={self.snapshot_every} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of the run, and how often it logs, validates and stores its state.

    Attributes:
      steps: training steps in total.
      accumulation: microbatches that a batch is split into to save memory; the result is the same as for the
        whole batch.
      log_every: steps between log lines.
      valid_every: steps between validations.
      preview_every: steps between previews, which sample validation clips.
      checkpoint_every: steps between checkpoints.
      checkpoint_minutes: once the last checkpoint is this old, in minutes, the next log line stores another
        one.
      keep_checkpoints: number of checkpoints to keep.
      max_skipped: abort after this many consecutive skipped (non-finite) steps.
      profile_from: first step to profile; 0 profiles none.
      profile_steps: number of steps to profile.
    """

    steps: int = 300_000
    accumulation: int = 1
    log_every: int = 100
    valid_every: int = 2000
    preview_every: int = 10_000
    checkpoint_every: int = 1000
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 3
    max_skipped: int = 10
    profile_from: int = 0
    profile_steps: int = 3

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.type is int and field.name != "profile_from" and getattr(self, field.name) < 1:
                raise FlowleyError(f"train.{field.name}={getattr(self, field.name)} must be at least 1")
        if self.profile_from < 0:
            raise FlowleyError(f"train.profile_from={self.profile_from} must not be negative")
        if not self.checkpoint_minutes > 0.0:
            raise FlowleyError(f"train.checkpoint_minutes={self.checkpoint_minutes} must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Initial weights of a run.

    Attributes:
      weights: folder of another run, or a weight file under the published names (.safetensors, .pth); its
        latent statistics and empty features are kept too. Empty for random weights.
      sigma_rel: EMA length of the weights if they come from a run's folder.
    """

    weights: str = ""
    sigma_rel: float = 0.05

    def __post_init__(self):
        _check_sigma_rel("start.sigma_rel", self.sigma_rel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adaptation (LoRA) instead of training all weights.

    Attributes:
      rank: rank of the adapters; 0 trains all weights.
      alpha: scale of the adapters; their product is multiplied by alpha / rank.
      layers: regular expressions that are searched for in layer names such as
        single_stream.0.reader.video.kv; the default matches all attention projections.
    """

    rank: int = 0
    alpha: float = 16.0
    layers: tuple[str, ...] = (r"\.(qkv|q|kv|out)$",)

    def __post_init__(self):
        if self.rank < 0:
            raise FlowleyError(f"lora.rank={self.rank} must not be negative")
        if not self.layers:
            raise FlowleyError("lora.layers=() must name at least one layer")
        for pattern in self.layers:
            try:
                re.compile(pattern)
            except re.error as error:
                raise FlowleyError(
                    f"lora.layers={pattern!r} must be a regular expression ({error})"
                ) from error

    @property
    def strength(self) -> float:
        """Factor of the adapters' product, alpha / rank."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis of the mesh.

    Attributes:
      data: copies of the model, each with its own part of the batch; -1 uses all remaining devices.
      fsdp: devices that share the weights of a copy, and its part of the batch.
      tensor: devices that share the weights and split attention heads and hidden channels.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        for name, least in (("data", -1), ("fsdp", 1), ("tensor", 1)):
            value = getattr(self, name)
            if value < least or value == 0:
                raise FlowleyError(f"mesh.{name}={value} must be at least 1{', or -1' if least < 0 else ''}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Defaults of the sampler.

    Attributes:
      guidance: classifier-free guidance scale; below 1, samples use only the conditional velocity.
      sigma_rel: EMA length of the weights to sample with.
    """

    solver: SolverConfig = SolverConfig()
    guidance: float = 7.5
    sigma_rel: float = 0.05

    def __post_init__(self):
        if not math.isfinite(self.guidance):
            raise FlowleyError(f"guidance={self.guidance} must be a number")
        _check_sigma_rel("sigma_rel", self.sigma_rel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """One training run.

    Attributes:
      seed: decides initial weights, data order and every random draw of the training.
    """

    seed: int = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    flow: FlowConfig = FlowConfig()
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    train: TrainConfig = free_on_resume(TrainConfig())
    start: StartConfig = StartConfig()
    lora: LoraConfig = LoraConfig()
    mesh: MeshConfig = free_on_resume(MeshConfig())
    sample: SampleConfig = free_on_resume(SampleConfig())

    def __post_init__(self):
        batch, group, parts = self.data.batch_size, self.flow.coupling_group, self.train.accumulation
        if self.flow.immiscible and batch > group and batch % group:
            raise FlowleyError(f"data.batch_size={batch} must be a multiple of flow.coupling_group={group}")
        if batch % parts:
            raise FlowleyError(f"data.batch_size={batch} must be a multiple of train.accumulation={parts}")
        if self.lora.rank and not self.start.weights:
            raise FlowleyError(f"lora.rank={self.lora.rank} needs start.weights, the weights to adapt")
        if parts > 1 and self.flow.loss.kind == "pseudo_huber":
            raise FlowleyError(
                f"train.accumulation={parts} needs flow.loss.kind=mse: pseudo_huber is not a sum over "
                "micro-batches"
            )


def experiment_from(tree: Mapping[str, Any]) -> ExperimentConfig:
    """Build the typed configuration from nested mappings, such as a ConfigDict or parsed JSON.

    Raises:
      FlowleyError: a key does not exist, or a value is invalid.
    """
    return typed_from(ExperimentConfig, tree)


def binding_values(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values that a run must keep when it resumes, by dotted name in alphabetical order.

    These are all values of a configuration except those declared with `free_on_resume`.
    """
    values = {}
    for field in dataclasses.fields(config):
        if is_free_on_resume(field):
            continue
        name, value = f"{prefix}{field.name}", getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        values.update(binding_values(value, f"{name}.") if nested else {name: value})
    return dict(sorted(values.items()))
