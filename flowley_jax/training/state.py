"""The state of a training run, which is data only."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowley_jax.config import ExperimentConfig, FlowConfig, LoraConfig, OptimConfig
from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.model.flowley import Constant, abstract_model
from flowley_jax.runs import lora
from flowley_jax.training.alignment import NO_HEAD, Head, new_head, with_head
from flowley_jax.training.optimizer import make_optimizer
from flowley_jax.training.sharding import Layout

# Number that the head for alignment folds into the seed's key, for initial weights of its own.
_HEAD = 1


class TrainState(NamedTuple):
    """Everything that a step changes, and the weights and constants that it only reads.

    Attributes:
      step: number of finished steps, int32.
      parameters: trained weights, float32: the nnx.State of nnx.Param, or LoRA's adapters.
      frozen: the nnx.State of nnx.Param that LoRA adapts, or that is the teacher of a flow map; empty for
        other runs. Checkpoints leave it out.
      constants: nnx.State of the latent statistics and the empty features.
      optimizer: optax state.
      averages: one tree like `parameters` for each EMA track.
      head: weights of the head for alignment (`flowley_jax.training.alignment`); empty for other runs.
    """

    step: jax.Array
    parameters: Any
    frozen: Any
    constants: Any
    optimizer: Any
    averages: tuple
    head: Head

    @property
    def without_frozen(self) -> "TrainState":
        """The part of the state that a checkpoint holds."""
        return self._replace(frozen={})


class FlowMapWeights(NamedTuple):
    """Weights of the networks that the loss of a flow map evaluates, with LoRA merged.

    Attributes:
      trained: the flow map's.
      teacher: those of the start, which give the velocity.
      averaged: the flow map's first EMA track, which gives the target for the rest of a step.
    """

    trained: Any
    teacher: Any
    averaged: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Everything that the programs of a run depend on. Runs with equal values share their programs.

    Attributes:
      seed: decides the initial weights and every random draw.
      model, flow, optim, lora: sections of the experiment's configuration.
      sigma_rels: lengths of the EMA tracks.
      accumulation: number of microbatches per step.
      log_every: update ratios are computed at every step that is a multiple of this.
      total_steps: last step of the run, if the learning rate or the target depends on it; else 0.
    """

    seed: int
    model: ModelConfig
    flow: FlowConfig
    optim: OptimConfig
    lora: LoraConfig
    sigma_rels: tuple[float, ...]
    accumulation: int
    log_every: int
    total_steps: int

    @classmethod
    def from_experiment(cls, config: ExperimentConfig) -> "StepConfig":
        """Return the values that the programs of this experiment depend on."""
        depends_on_steps = config.optim.schedule == "cosine" or config.flow.map.enabled
        return cls(
            seed=config.seed,
            model=config.model,
            flow=config.flow,
            optim=config.optim,
            lora=config.lora,
            sigma_rels=config.ema.sigma_rels,
            accumulation=config.train.accumulation,
            log_every=config.train.log_every,
            total_steps=config.train.steps if depends_on_steps else 0,
        )

    @property
    def keeps_start(self) -> bool:
        """Whether the weights of the start stay part of the state, frozen."""
        return bool(self.lora.rank) or self.flow.map.enabled


def create_state(
    config: StepConfig, layout: Layout, *, latent_mean: np.ndarray, latent_std: np.ndarray
) -> TrainState:
    """Return the state of a new run with random weights.

    Every weight is initialised with its own sharding: no device ever holds all of them.

    Args:
      latent_mean, latent_std: statistics (audio_dim,) of the training latents.
    """
    statistics = (np.asarray(value, np.float32) for value in (latent_mean, latent_std))
    return _random_state_program(config, layout)(*statistics)


def state_from_weights(config: StepConfig, layout: Layout, parameters: Any, constants: Any) -> TrainState:
    """Return the state of a new run that starts from given weights.

    Args:
      parameters, constants: a model's weights, which every process has whole.
    """
    program = jax.jit(
        functools.partial(_initial_state, config),
        out_shardings=layout.state_shardings(abstract_state(config, layout)),
    )
    return program(*layout.shard_weights((parameters, constants)))


@functools.lru_cache
def abstract_state(config: StepConfig, layout: Layout) -> TrainState:
    """Return the shapes and shardings of a run's state. No array is made."""
    _, parameters, constants = abstract_model(config.model)
    shapes = jax.eval_shape(functools.partial(_initial_state, config), parameters, constants)
    return layout.abstract_state(shapes)


def model_weights(state: TrainState, config: LoraConfig, *, trained: Any = None) -> Any:
    """Return the network's weights, with LoRA's adapters merged.

    Args:
      trained: replaces the state's trained weights, for example by an average of them.
    """
    trained = state.parameters if trained is None else trained
    if not config.rank:
        return trained
    return lora.merged(state.frozen, trained, strength=config.strength)


def weights_in_loss(state: TrainState, config: StepConfig, *, trained: Any = None) -> Any:
    """Return the weights that the loss depends on: the network's, or the `FlowMapWeights` of a flow map.

    Args:
      trained: replaces the state's trained weights.
    """
    weights = model_weights(state, config.lora, trained=trained)
    if not config.flow.map.enabled:
        return weights
    averaged = model_weights(state, config.lora, trained=state.averages[0])
    return FlowMapWeights(weights, state.frozen, averaged)


@functools.lru_cache
def _random_state_program(config: StepConfig, layout: Layout) -> Any:
    def build(latent_mean: jax.Array, latent_std: jax.Array) -> TrainState:
        model = Flowley(config.model, rngs=nnx.Rngs(params=jax.random.key(config.seed)))
        model.latent_mean.set_value(latent_mean)
        model.latent_std.set_value(latent_std)
        _, parameters, constants = nnx.split(model, nnx.Param, Constant)
        return _initial_state(config, parameters, constants)

    return jax.jit(build, out_shardings=layout.state_shardings(abstract_state(config, layout)))


def _initial_state(config: StepConfig, parameters: Any, constants: Any) -> TrainState:
    # Copies, because the step donates the state, and no array can be donated twice.
    frozen = jax.tree.map(jnp.copy, parameters) if config.keeps_start else {}
    if config.lora.rank:
        parameters = lora.new_adapters(frozen, config.lora, jax.random.key(config.seed))
    head = NO_HEAD
    if config.flow.loss.alignment_weight:
        head = new_head(config.model, jax.random.fold_in(jax.random.key(config.seed), _HEAD))
    trained = with_head(parameters, head)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        parameters=parameters,
        frozen=frozen,
        constants=constants,
        optimizer=make_optimizer(config.optim, config.total_steps).init(trained),
        averages=tuple(jax.tree.map(jnp.copy, parameters) for _ in config.sigma_rels),
        head=head,
    )
