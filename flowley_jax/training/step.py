"""One training step and one validation step, as pure functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from flowley_jax.config import ExperimentConfig
from flowley_jax.flow import coupling, path
from flowley_jax.flow.guidance import drop_conditions, random_drops
from flowley_jax.flow.losses import Losses, flow_losses
from flowley_jax.flow.time_sampling import sample_times
from flowley_jax.model import Flowley
from flowley_jax.training.ema import update_averages
from flowley_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
    config: ExperimentConfig, graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step; it donates the state. Randomness is folded from the seed and the step's number."""
    key = jax.random.key(config.seed)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)

        def loss(parameters):
            model = nnx.merge(graphdef, parameters, state.constants)
            losses = batch_losses(model, batch, step_key, config, training=True)
            return losses.total, losses

        gradients, losses = jax.grad(loss, has_aux=True)(state.parameters)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
        parameters: Any = optax.apply_updates(state.parameters, updates)
        finished = state.step + 1
        averages = update_averages(state.averages, parameters, finished, config.ema.sigma_rels)
        metrics = {**_named(losses), "gradient_norm": optax.tree.norm(gradients)}
        return TrainState(finished, parameters, state.constants, optimizer_state, averages), metrics

    return jax.jit(step, donate_argnums=0)


def make_valid_step(
    config: ExperimentConfig, graphdef: nnx.GraphDef
) -> Callable[[TrainState, Batch, int], Metrics]:
    """The jitted validation: the same loss without dropout; draws depend on the batch index alone."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)

    def step(state: TrainState, batch: Batch, index) -> Metrics:
        model = nnx.merge(graphdef, state.parameters, state.constants)
        return _named(batch_losses(model, batch, jax.random.fold_in(key, index), config, training=False))

    return jax.jit(step)


def batch_losses(
    model: Flowley, batch: Batch, key: jax.Array, config: ExperimentConfig, *, training: bool
) -> Losses:
    """Losses of one batch of records (spec/model.md, Rectified flow).

    Latents are drawn from the codec's posterior and standardised with the model's statistics. Outside
    training, dropout and condition dropout are off.
    """
    keys = jax.random.split(key, 5)
    data = model.standardise(path.draw_latent(keys[0], batch["audio_mean"], batch["audio_std"]))
    noise = jax.random.normal(keys[1], data.shape, jnp.float32)
    if config.flow.immiscible:
        noise = noise[coupling.immiscible_assignment(data, noise)]
    t = sample_times(keys[2], data.shape[0], config.flow.time)
    video, text = batch["video_features"], batch["text_features"]
    if training:
        drop_video, drop_text = random_drops(keys[3], data.shape[0], config.flow.condition_dropout)
        video, text = drop_conditions(model, video, text, drop_video=drop_video, drop_text=drop_text)
    velocity = model(
        path.interpolate(noise, data, t),
        video,
        text,
        batch["text_len"],
        t,
        deterministic=not training,
        rng=keys[4] if training else None,
    )
    return flow_losses(velocity, path.target_velocity(noise, data), config.flow.loss)


def _named(losses: Losses) -> Metrics:
    return {"loss": losses.total, "velocity_loss": losses.velocity, "direction_loss": losses.direction}
