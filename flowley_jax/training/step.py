"""One training step and one validation step, as pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from flowley_jax.config import ExperimentConfig
from flowley_jax.devices import platform_in_use
from flowley_jax.flow import path
from flowley_jax.flow.guidance import drop_conditions, random_drops
from flowley_jax.flow.losses import Losses, flow_losses
from flowley_jax.flow.time_sampling import sample_times
from flowley_jax.model import Flowley
from flowley_jax.model.stack import Fetch, as_stored
from flowley_jax.training.ema import update_averages
from flowley_jax.training.pairing import paired_noise
from flowley_jax.training.sharding import Layout
from flowley_jax.training.state import TrainState, weights_of
from flowley_jax.training.update_ratios import update_ratios

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# Parts of the network whose weights are fetched block by block.
_BLOCKS = ("multi_stream", "single_stream")


class Examples(NamedTuple):
    """What the network is given and what it shall answer, each with the batch in front.

    Attributes:
      noisy, target: x_t and the velocity there (B, Ta, C); t: (B,).
      video, text, text_len: conditions, some of them dropped.
      keys: (B,) of each item's dropout; None without dropout.
    """

    noisy: jax.Array
    target: jax.Array
    t: jax.Array
    video: jax.Array
    text: jax.Array
    text_len: jax.Array
    keys: jax.Array | None


def make_train_step(
    config: ExperimentConfig,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    layout: Layout,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step; it donates the state. Randomness is folded from the seed and the step's number, and
    belongs to places in the whole batch: neither the mesh nor accumulation changes it.

    Where loss or gradient is not finite, the metric `skipped` is 1, and nothing but the number of steps
    changes.
    """
    key = jax.random.key(config.seed)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        model = nnx.merge(graphdef, weights_of(state, config), state.constants)
        step_key = jax.random.fold_in(key, state.step)
        examples = draw_examples(model, layout.split_batch(batch), step_key, config, layout, training=True)

        def loss(parameters, examples):
            fetched = layout.fetch(weights_of(state, config, parameters), but=_BLOCKS)
            model = nnx.merge(graphdef, fetched, state.constants)
            losses = example_losses(model, layout.split_batch(examples), config, fetch=layout.fetch)
            return losses.total, losses

        gradients, losses = _accumulated(
            jax.grad(loss, has_aux=True), state.parameters, examples, config.train.accumulation
        )
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
        parameters: Any = optax.apply_updates(state.parameters, updates)
        finished = state.step + 1
        averages = update_averages(state.averages, parameters, finished, config.ema.sigma_rels)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(losses.total) & jnp.isfinite(norm)
        changed = (parameters, optimizer_state, averages)
        kept = (state.parameters, state.optimizer, state.averages)
        parameters, optimizer_state, averages = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), changed, kept
        )
        reported = finite & (finished % config.train.log_every == 0)
        metrics = {
            **_named(losses),
            "gradient_norm": norm,
            "skipped": 1.0 - finite,
            **update_ratios(updates, state.parameters, when=reported),
        }
        after = state._replace(
            step=finished, parameters=parameters, optimizer=optimizer_state, averages=averages
        )
        return jax.lax.with_sharding_constraint(after, layout.of_state(after)), metrics

    return layout.jit(step, donate_argnums=0)


def make_valid_step(
    config: ExperimentConfig, graphdef: nnx.GraphDef, layout: Layout
) -> Callable[[TrainState, Batch, int], Metrics]:
    """The jitted validation: the same loss without dropout; draws depend on the batch index alone."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)

    def step(state: TrainState, batch: Batch, index) -> Metrics:
        fetched = layout.fetch(weights_of(state, config), but=_BLOCKS)
        model = nnx.merge(graphdef, fetched, state.constants)
        step_key = jax.random.fold_in(key, index)
        examples = draw_examples(model, batch, step_key, config, layout, training=False)
        return _named(example_losses(model, examples, config, fetch=layout.fetch))

    return layout.jit(step)


def draw_examples(
    model: Flowley, batch: Batch, key: jax.Array, config: ExperimentConfig, layout: Layout, *, training: bool
) -> Examples:
    """Noisy latents and their targets for a batch of records (spec/model.md, Rectified flow).

    Latents are drawn from the codec's posterior and standardised with the model's statistics. Outside
    training, dropout and condition dropout are off. A clip without a picture has the empty video. No trained
    weight is read.
    """
    keys = jax.random.split(key, 5)
    data = model.standardise(path.draw_latent(keys[0], batch["audio_mean"], batch["audio_std"]))
    noise = jax.random.normal(keys[1], data.shape, jnp.float32)
    if config.flow.immiscible:
        noise = paired_noise(data, noise, group=config.flow.coupling_group, layout=layout)
    t = sample_times(keys[2], data.shape[0], config.flow.time)
    dropout = config.flow.condition_dropout if training else 0.0
    drop_video, drop_text = random_drops(keys[3], data.shape[0], dropout)
    video, text = drop_conditions(
        model,
        batch["video_features"],
        batch["text_features"],
        drop_video=drop_video | ~batch["has_video"],
        drop_text=drop_text,
    )
    return Examples(
        noisy=path.interpolate(noise, data, t),
        target=path.target_velocity(noise, data),
        t=t,
        video=video,
        text=text,
        text_len=batch["text_len"],
        keys=jax.random.split(keys[4], data.shape[0]) if training else None,
    )


def example_losses(
    model: Flowley, examples: Examples, config: ExperimentConfig, *, fetch: Fetch = as_stored
) -> Losses:
    """Losses of the network's answers."""
    velocity = model(
        examples.noisy,
        examples.video,
        examples.text,
        examples.text_len,
        examples.t,
        deterministic=examples.keys is None,
        rng=examples.keys,
        fetch=fetch,
    )
    return flow_losses(velocity, examples.target, config.flow.loss)


def _accumulated(gradient, parameters, examples: Examples, parts: int):
    """Means of gradients and losses over the parts of a batch, one after the other."""
    if parts == 1:
        return gradient(parameters, examples)
    # Every part takes from all of the batch, and so from all devices.
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), examples)
    shapes = jax.eval_shape(gradient, parameters, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradient(parameters, part)), None

    # XLA:CPU differentiates convolutions inside a loop 26 times slower than outside.
    total, _ = jax.lax.scan(add, zeros, split, unroll=platform_in_use() == "cpu")
    return jax.tree.map(lambda leaf: leaf / parts, total)


def _named(losses: Losses) -> Metrics:
    return {"loss": losses.total, "velocity_loss": losses.velocity, "direction_loss": losses.direction}
