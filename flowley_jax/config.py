"""Configuration of a training run as typed values."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from flowley_jax.common.ranges import (
    FLOW_TIMES,
    GUIDANCES,
    LOUDNESSES,
    OVERLAPS,
    PROCESSES,
    SECONDS,
    SEEDS,
    SIGMA_RELS,
    Count,
    CountOrZero,
    NotNegative,
    Positive,
    Range,
    Share,
)
from flowley_jax.common.typed import check_values, free_on_resume, is_free_on_resume, typed_from
from flowley_jax.errors import FlowleyError
from flowley_jax.flow.flow_map import FlowMapConfig
from flowley_jax.flow.guidance import Guidance
from flowley_jax.flow.losses import LossConfig
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.flow.stretches import stretches
from flowley_jax.flow.time_sampling import TimeConfig
from flowley_jax.model.config import ModelConfig


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
    generate: CountOrZero = free_on_resume(0)
    generate_seconds: Annotated[float, SECONDS] = free_on_resume(8.0)
    generate_text_length: Annotated[int, Range(least=8, most=65_536)] = free_on_resume(77)
    generate_sample_rate: Literal[16_000, 44_100] = free_on_resume(16_000)
    latent_rate: Annotated[float, Range(least=0.1, most=1000)] = free_on_resume(31.25)
    batch_size: Count = 512
    num_workers: Annotated[int, Range(least=0, most=PROCESSES.most)] = free_on_resume(0)
    captions: tuple[str, ...] = ("table",)
    caption_weights: tuple[NotNegative, ...] = (1.0,)

    def __post_init__(self):
        check_values(self, "data")
        if len(self.captions) != len(self.caption_weights) or not self.captions:
            raise FlowleyError(
                f"data.captions={self.captions} needs as many weights, found {self.caption_weights}"
            )
        if len(set(self.captions)) < len(self.captions):
            raise FlowleyError(f"data.captions={self.captions} must name each source once")
        if not any(self.caption_weights):
            raise FlowleyError(f"data.caption_weights={self.caption_weights} must not be all zero")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Training target: times, losses, flow maps, coupling and condition dropout.

    Attributes:
      immiscible: assign noise samples to latents so that the sum of their distances in a group is minimal
        (immiscible diffusion).
      coupling_group: consecutive examples of a batch that are coupled with each other; a smaller batch is one
        group. The published run used 256.
      condition_dropout: probability with which video and text are dropped, independently, as guidance needs.
    """

    time: TimeConfig = TimeConfig()
    loss: LossConfig = LossConfig()
    map: FlowMapConfig = FlowMapConfig()
    immiscible: bool = True
    coupling_group: Count = 256
    condition_dropout: Share = 0.1

    def __post_init__(self):
        check_values(self, "flow")
        if self.map.enabled and self.loss.kind != "mse":
            raise FlowleyError(
                f"flow.loss.kind={self.loss.kind} must be mse for a flow map, whose loss weights the squared "
                "error of each item"
            )
        if self.map.enabled and self.loss.alignment_weight:
            raise FlowleyError(
                f"flow.loss.alignment_weight={self.loss.alignment_weight} must be 0 for a flow map, "
                "which starts from a trained network"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser, clipping by the global norm, and a learning-rate schedule.

    Attributes:
      kind: "adamw", as published, or "muon": orthogonal updates of the kernels between the first layers and
        the last one (Jordan et al. 2024), and AdamW for all other weights, LoRA's adapters included.
      learning_rate: learning rate at the end of warm-up; Muon's updates are as large as AdamW's.
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

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: Positive = 1.5e-4
    beta1: Annotated[float, Range(least=0, below=1)] = 0.9
    beta2: Annotated[float, Range(least=0, below=1)] = 0.95
    weight_decay: NotNegative = 1e-6
    clip_norm: Positive = 1.0
    warmup_steps: CountOrZero = 1000
    schedule: Literal["steps", "cosine"] = "steps"
    decay_steps: tuple[CountOrZero, ...] = (180_000, 300_000)
    decay_factor: Annotated[float, Range(above=0, most=1)] = 0.1

    def __post_init__(self):
        check_values(self, "optim")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Averages of the weights: tracks for post-hoc EMA (Karras et al. 2024, arXiv 2312.02696).

    Attributes:
      sigma_rels: length σ_rel of each track, relative to the run; other lengths are computed from them later.
      snapshot_every: steps between stored snapshots of the tracks.
    """

    sigma_rels: tuple[Annotated[float, SIGMA_RELS], ...] = (0.05, 0.10)
    snapshot_every: Count = 5000

    def __post_init__(self):
        check_values(self, "ema")
        if not self.sigma_rels:
            raise FlowleyError("ema.sigma_rels=() must name at least one track")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of the run, and how often it logs, validates, evaluates and stores its state.

    Attributes:
      steps: training steps in total.
      accumulation: microbatches that a batch is split into to save memory; the result is the same as for the
        whole batch.
      log_every: steps between log lines.
      valid_every: steps between validations.
      preview_every: steps between previews, which sample validation clips.
      evaluate_every: steps between evaluations, which sample and score clips of the valid split; 0 for none.
      evaluate_clips: number of clips that an evaluation samples: the first ones of the valid split.
      evaluate_networks: folder of bundles of evaluation networks, from flowley_jax.convert; empty for the
        embedded tagger only.
      checkpoint_every: steps between checkpoints.
      checkpoint_minutes: once the last checkpoint is this old, in minutes, the next log line stores another
        one.
      keep_checkpoints: number of checkpoints to keep.
      max_skipped: abort after this many consecutive skipped (non-finite) steps.
      profile_from: first step to profile; 0 profiles none.
      profile_steps: number of steps to profile.
    """

    steps: Count = 300_000
    accumulation: Count = 1
    log_every: Count = 100
    valid_every: Count = 2000
    preview_every: Count = 10_000
    evaluate_every: CountOrZero = 0
    evaluate_clips: Annotated[int, Range(least=2)] = 32
    evaluate_networks: str = ""
    checkpoint_every: Count = 1000
    checkpoint_minutes: Positive = 10.0
    keep_checkpoints: Count = 3
    max_skipped: Count = 10
    profile_from: CountOrZero = 0
    profile_steps: Count = 3

    def __post_init__(self):
        check_values(self, "train")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Initial weights of a run.

    Attributes:
      weights: folder of another run or of a shared model, hf:ORG/NAME for one on the Hugging Face hub, or a
        weight file under the published names (.safetensors, .pth); its latent statistics and empty features
        are kept too. Empty for random weights.
      sigma_rel: EMA length of the weights if they come from a run's folder.
      any_codec: also start from weights whose codec is not that of the records; they must learn its latents.
    """

    weights: str = ""
    sigma_rel: Annotated[float, SIGMA_RELS] = 0.05
    any_codec: bool = False

    def __post_init__(self):
        check_values(self, "start")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adaptation (LoRA) instead of training all weights.

    Attributes:
      rank: rank of the adapters; 0 trains all weights.
      alpha: scale of the adapters; their product is multiplied by alpha / rank.
      layers: regular expressions that are searched for in layer names such as
        single_stream.0.reader.video.kv; the default matches all attention projections.
    """

    rank: CountOrZero = 0
    alpha: Positive = 16.0
    layers: tuple[str, ...] = (r"\.(qkv|q|kv|out)$",)

    def __post_init__(self):
        check_values(self, "lora")
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

    data: Annotated[int, Range(least=-1)] = -1
    fsdp: Count = 1
    tensor: Count = 1

    def __post_init__(self):
        check_values(self, "mesh")
        if self.data == 0:
            raise FlowleyError("mesh.data=0 must be at least 1, or -1 for all remaining devices")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Defaults of the sampler.

    Attributes:
      guidance: classifier-free guidance scale; 1 or below is no guidance, except by `guidance_text`.
      guidance_text: scale of the text at all steps; `guidance` is then the scale of the video only. None for
        one scale. A step with two different scales evaluates the network three times, unless that of the
        video is 1.
      guidance_from: `guidance` applies to solver steps that begin at this time or later; 0 is noise, 1 is
        sound. In other steps, the scale is 1.
      guidance_to: `guidance` applies to solver steps that begin before this time.
      guidance_rescale: share of the guided velocity that gets the standard deviation of the conditional one.
      zero_star: scale the empty branch of guidance by least squares (CFG-Zero*).
      zero_until: skip solver steps that begin before this time (CFG-Zero*).
      autoguidance_step: lead away from the weights that the run had averaged at this step, instead of the
        empty condition; 0 for the empty condition. Previews and evaluations of a training lead
        away from the empty condition.
      autoguidance_sigma_rel: EMA length of these weights; None for that of `sigma_rel`.
      sigma_rel: EMA length of the weights to sample with.
      negative_prompt: text of the empty branch, from which guidance leads away; "" for the empty text.
      window: length in seconds of the windows of a longer video; None for that of the training clips.
      overlap: share of each window that overlaps the next one.
      loudness: integrated loudness of written sounds in LUFS (ITU-R BS.1770); None for the model's own level.
    """

    solver: SolverConfig = SolverConfig()
    guidance: Annotated[float, GUIDANCES] = 7.5
    guidance_text: Annotated[float, GUIDANCES] | None = None
    guidance_from: Share = 0.0
    guidance_to: Share = 1.0
    guidance_rescale: Share = 0.0
    zero_star: bool = False
    zero_until: Annotated[float, FLOW_TIMES] = 0.0
    autoguidance_step: CountOrZero = 0
    autoguidance_sigma_rel: Annotated[float, SIGMA_RELS] | None = None
    sigma_rel: Annotated[float, SIGMA_RELS] = 0.05
    negative_prompt: str = ""
    window: Annotated[float, SECONDS] | None = None
    overlap: Annotated[float, OVERLAPS] = 0.25
    loudness: Annotated[float, LOUDNESSES] | None = None

    def __post_init__(self):
        check_values(self, "sample")
        if self.guidance_from > self.guidance_to:
            raise FlowleyError(
                f"sample.guidance_from={self.guidance_from:g} must not be above "
                f"sample.guidance_to={self.guidance_to:g}"
            )
        if not stretches(self.solver, self.guidance_form):
            raise FlowleyError(f"sample.zero_until={self.zero_until:g} leaves no step of the solver")
        if self.autoguidance_sigma_rel is not None and not self.autoguidance_step:
            raise FlowleyError(
                f"sample.autoguidance_sigma_rel={self.autoguidance_sigma_rel:g} needs autoguidance_step, the "
                "step of the weights to lead away from"
            )
        if self.autoguidance_step and (self.guidance_text is not None or self.negative_prompt):
            refused = (
                f"negative_prompt={self.negative_prompt!r}"
                if self.negative_prompt
                else f"guidance_text={self.guidance_text:g}"
            )
            raise FlowleyError(
                f"sample.{refused} does not go with autoguidance, which has no empty branch; set "
                "autoguidance_step=0"
            )

    @property
    def guidance_form(self) -> Guidance:
        """The form of guidance that these values describe."""
        return Guidance(
            scale=self.guidance,
            text_scale=self.guidance_text,
            start=self.guidance_from,
            end=self.guidance_to,
            zero_until=self.zero_until,
            zero_star=self.zero_star,
            rescale=self.guidance_rescale,
            bad_model=self.autoguidance_step > 0,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """One training run.

    Attributes:
      seed: decides initial weights, data order and every random draw of the training.
    """

    seed: Annotated[int, SEEDS] = 0
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
        check_values(self, "")
        batch, group, parts = self.data.batch_size, self.flow.coupling_group, self.train.accumulation
        if self.flow.immiscible and batch > group and batch % group:
            raise FlowleyError(f"data.batch_size={batch} must be a multiple of flow.coupling_group={group}")
        if batch % parts:
            raise FlowleyError(f"data.batch_size={batch} must be a multiple of train.accumulation={parts}")
        if self.lora.rank and not self.start.weights:
            raise FlowleyError(f"lora.rank={self.lora.rank} needs start.weights, the weights to adapt")
        if self.flow.map.enabled and not self.start.weights:
            raise FlowleyError(
                "flow.map.enabled=True needs start.weights, the trained network to make few steps of"
            )
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
