"""Everything a run is made of, as typed values; ml_collections stops at `experiment_from`."""

import dataclasses
import math
import re
import typing
from collections.abc import Mapping
from typing import Any, Literal

from flowley_jax.errors import FlowleyError
from flowley_jax.flow.losses import LossConfig
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.flow.time_sampling import TimeConfig
from flowley_jax.model.config import ModelConfig


def _check_sigma_rel(name: str, value: float) -> None:
    # At 1/√12 the power function is the plain average of the whole run; there is nothing longer.
    if not 0.0 < value < 12**-0.5:
        raise FlowleyError(f"{name}={value} must be between 0 and 0.288, relative to the length of the run")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the records are and how batches are drawn.

    Attributes:
      records: folder of the records (`data_prep.extract`), with a train split and, to
        validate on, a valid one.
      generate: number of random records of the model's sizes to train on instead, for trying a
        configuration out; they are written into the run's folder. 0 for real data.
      generate_seconds, generate_text_length: length of generated records, and of the clips for which
        `flowley_jax.compile` compiles, in seconds and text tokens.
      generate_sample_rate, latent_rate: of their sound in Hz, and of their latents per second.
      batch_size: examples per step over all devices.
      num_workers: processes that read ahead; 0 reads in the training process.
      captions, caption_weights: sources of captions, the clip table's (`table`) and others that the records
        have, and how often each is drawn; a clip without a caption of any of them has the table's.
    """

    records: str = ""
    generate: int = 0
    generate_seconds: float = 8.0
    generate_text_length: int = 77
    generate_sample_rate: int = 16_000
    latent_rate: float = 31.25
    batch_size: int = 512
    num_workers: int = 0
    captions: tuple[str, ...] = ("table",)
    caption_weights: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        if len(self.captions) != len(self.caption_weights) or not self.captions:
            raise FlowleyError(
                f"data.captions={self.captions} needs as many weights, found {self.caption_weights}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Training target: distribution of t, losses, coupling, condition dropout.

    Attributes:
      immiscible: pairs latents and noises of a batch so that their distances are least in sum.
      coupling_group: examples that are paired among each other, neighbours in the batch, on whatever devices
        they are; a batch that is smaller is one group. The published run paired 256.
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
    """AdamW with global-norm clipping and a stepwise schedule (spec/model.md, optimiser).

    Attributes:
      warmup_steps: linear warm-up, factor (step + 1)/(warmup_steps + 1).
      schedule: "steps" multiplies by `decay_factor` at each of `decay_steps` counted from the end of
        warm-up; "cosine" falls to zero at the last training step.
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
        if self.learning_rate <= 0.0:
            raise FlowleyError(f"optim.learning_rate={self.learning_rate} must be positive")
        if self.clip_norm <= 0.0:
            raise FlowleyError(f"optim.clip_norm={self.clip_norm} must be positive")
        if self.schedule not in ("steps", "cosine"):
            raise FlowleyError(f"optim.schedule={self.schedule!r} must be steps or cosine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Post-hoc EMA tracks (Karras et al. 2024): their σ_rel, and steps between stored snapshots."""

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
    """Length of the run and what happens how often, in steps.

    Attributes:
      accumulation: parts of a batch whose gradients are computed one after the other and added up, for a
        batch that does not fit into memory; the result is that of the whole batch.
      checkpoint_every, checkpoint_minutes: a checkpoint is stored after so many steps, and at a log line
        where the last one is so old.
      max_skipped: steps in a row without a finite loss and gradient, none of which changes anything, that end
        the run.
      profile_from, profile_steps: first of so many steps to trace; 0 traces none.
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
    """What a run begins with.

    Attributes:
      weights: folder of another run, or a file under the published names (.safetensors, .pth);
        empty for random weights. Its latent statistics and empty features are kept, too.
      sigma_rel: EMA length of a folder's weights.
    """

    weights: str = ""
    sigma_rel: float = 0.05

    def __post_init__(self):
        _check_sigma_rel("start.sigma_rel", self.sigma_rel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adaptation instead of training all weights; see `training.lora`.

    Attributes:
      rank: of the adapters; 0 trains all weights.
      alpha: the adapters count alpha / rank times.
      layers: regular expressions, searched for in names such as single_stream.0.reader.video.kv; by
        default all maps of attention.
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
                raise FlowleyError(f"lora.layers: {pattern!r} is no regular expression ({error})") from error

    @property
    def strength(self) -> float:
        """By which the adapters' product is multiplied."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along the axes of the mesh: `data` copies of the weights, each split over `fsdp` devices, and
    over `tensor`, which also split heads and hidden channels. -1 takes all devices that the others leave.
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
    """What the sampler does unless told otherwise.

    Attributes:
      guidance: classifier-free guidance scale; below 1 the condition alone.
      sigma_rel: EMA length of the sampled weights.
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
    """One training run; `seed` decides initial values, data order and every draw of the training."""

    seed: int = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    flow: FlowConfig = FlowConfig()
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    train: TrainConfig = TrainConfig()
    start: StartConfig = StartConfig()
    lora: LoraConfig = LoraConfig()
    mesh: MeshConfig = MeshConfig()
    sample: SampleConfig = SampleConfig()

    def __post_init__(self):
        batch, group, parts = self.data.batch_size, self.flow.coupling_group, self.train.accumulation
        if self.flow.immiscible and batch > group and batch % group:
            raise FlowleyError(f"data.batch_size={batch} must be a multiple of flow.coupling_group={group}")
        if batch % parts:
            raise FlowleyError(f"data.batch_size={batch} must be a multiple of train.accumulation={parts}")
        if self.lora.rank and not self.start.weights:
            raise FlowleyError(f"lora.rank={self.lora.rank} needs start.weights: what is to be adapted")
        if parts > 1 and self.flow.loss.kind == "pseudo_huber":
            raise FlowleyError(
                f"train.accumulation={parts} needs flow.loss.kind=mse: pseudo_huber is no sum over parts"
            )


def experiment_from(tree: Mapping[str, Any]) -> ExperimentConfig:
    """Builds the typed configuration from nested mappings (a ConfigDict, or parsed JSON).

    Raises:
      FlowleyError: for a key that does not exist, naming it and the keys that do.
    """
    return typed_from(ExperimentConfig, tree, "config")


def typed_from(kind, tree: Mapping[str, Any], path: str):
    """A dataclass, and those within it, from nested mappings.

    Args:
      path: what the mapping is called, for messages.

    Raises:
      FlowleyError: for a key that does not exist, naming it and the keys that do.
    """
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(tree) - set(hints))
    if unknown:
        raise FlowleyError(f"unknown key {path}.{unknown[0]}; {path} has {', '.join(sorted(hints))}")
    return kind(**{name: _convert(hints[name], value, f"{path}.{name}") for name, value in tree.items()})


def _convert(hint, value, path: str):
    if dataclasses.is_dataclass(hint):
        return typed_from(hint, value, path)
    if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
        raise FlowleyError(f"{path}={value!r} must be one of {', '.join(typing.get_args(hint))}")
    if typing.get_origin(hint) is tuple:
        return tuple(value)
    if hint is float and isinstance(value, int):
        return float(value)
    return value
