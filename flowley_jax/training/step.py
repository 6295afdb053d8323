"""The training step and the validation step: jitted functions.

Configuration and layout are static arguments, so that every run with the same ones uses the same programs.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from flowley_jax.common.devices import BATCH_AXES, platform_in_use
from flowley_jax.config import FlowConfig
from flowley_jax.flow import path
from flowley_jax.flow.coupling import group_size, immiscible_assignment
from flowley_jax.flow.flow_map import alpha_at, draw_intervals, mean_velocity_target, teacher_velocity
from flowley_jax.flow.guidance import drop_conditions, random_drops
from flowley_jax.flow.losses import Losses, adaptive_losses, flow_losses
from flowley_jax.flow.time_sampling import sample_times
from flowley_jax.model import Flowley
from flowley_jax.model.flowley import merge_model
from flowley_jax.model.stack import GatherWeights, identity
from flowley_jax.training.alignment import NO_HEAD, Head, alignment_loss, with_head, without_head
from flowley_jax.training.sharding import Layout
from flowley_jax.training.state import (
    FlowMapWeights,
    StepConfig,
    TrainState,
    model_weights,
    weights_in_loss,
)
from flowley_jax.training.update import updated_state

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# Sections of the network whose weights are gathered block by block, where each block is computed.
_BLOCKS = ("multi_stream", "single_stream")
# Number that the ends of a flow map's steps fold into the key; those below are taken by `draw_examples`.
_INTERVALS = 5


class Examples(NamedTuple):
    """The network's inputs and targets for one batch; the batch is the first axis of every array.

    Attributes:
      noisy, target: x_t and the velocity at x_t (B, Ta, C).
      t: (B,) times.
      r: (B,) times at which a flow map's steps end; None for other networks.
      video, text, text_len: conditions, some of them dropped.
      dropout_keys: (B,) random keys; None without dropout.
    """

    noisy: jax.Array
    target: jax.Array
    t: jax.Array
    r: jax.Array | None
    video: jax.Array
    text: jax.Array
    text_len: jax.Array
    dropout_keys: jax.Array | None


@functools.partial(jax.jit, static_argnames=("config", "layout"), donate_argnames="state")
def train_step(
    state: TrainState, batch: Batch, *, config: StepConfig, layout: Layout
) -> tuple[TrainState, Metrics]:
    """Return the state after one step, and the step's metrics. The old state is donated.

    Random keys are folded from the seed and the step's number, and belong to positions in the whole batch:
    neither the mesh nor accumulation changes them. If the loss or the gradient is not finite, only the step
    number changes, and the metric `skipped` is 1.
    """
    with layout.activate():
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        model = merge_model(config.model, model_weights(state, config.lora), state.constants)
        examples = draw_examples(
            model, layout.constrain_batch(batch), key, config.flow, layout, training=True
        )

        def loss(trained: Any, examples: Examples) -> tuple[jax.Array, tuple[Losses, jax.Array]]:
            parameters, head = without_head(trained, state.head)
            weights = weights_in_loss(state, config, trained=parameters)
            examples = layout.constrain_batch(examples)
            losses, alignment = network_losses(
                weights, state.constants, examples, state.step, config=config, layout=layout, head=head
            )
            return losses.total + config.flow.loss.alignment_weight * alignment, (losses, alignment)

        trained = with_head(state.parameters, state.head)
        gradients, (losses, alignment) = _accumulate(
            jax.grad(loss, has_aux=True), trained, examples, config.accumulation
        )
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(losses.total) & jnp.isfinite(norm)
        after, ratios = updated_state(state, gradients, norm, finite=finite, config=config)
        metrics = {
            **_named(losses),
            **({"alignment_loss": alignment} if state.head else {}),
            "gradient_norm": norm,
            "skipped": 1.0 - finite,
            **ratios,
        }
        return jax.lax.with_sharding_constraint(after, layout.state_shardings(after)), metrics


@functools.partial(jax.jit, static_argnames=("config", "layout"))
def valid_step(
    weights: Any,
    constants: Any,
    batch: Batch,
    index: jax.Array | int,
    *,
    config: StepConfig,
    layout: Layout,
) -> Metrics:
    """Return the losses of a batch without dropout. The random draws depend only on the batch's index.

    A flow map's targets are those of the last training step, so that its losses can be compared.

    Args:
      weights: the network's, with LoRA merged, or `FlowMapWeights`. Without a teacher, a flow map gets the
        losses of its velocity.
      constants: the network's constants.
    """
    with layout.activate():
        key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)
        trained = weights.trained if isinstance(weights, FlowMapWeights) else weights
        model = merge_model(config.model, trained, constants)
        examples = draw_examples(
            model, batch, jax.random.fold_in(key, index), config.flow, layout, training=False
        )
        losses, _ = network_losses(
            weights, constants, examples, config.total_steps, config=config, layout=layout
        )
        return _named(losses)


@jax.named_scope("examples")
def draw_examples(
    model: Flowley, batch: Batch, key: jax.Array, config: FlowConfig, layout: Layout, *, training: bool
) -> Examples:
    """Return noisy latents and their target velocities for a batch of records (docs/model.md).

    Latents are drawn from the codec's posterior and standardised with the model's statistics. Dropout and
    condition dropout apply only in training. A clip without video gets the empty video feature. The model's
    constants are read; its trained weights are not.
    """
    keys = jax.random.split(key, 5)
    data = model.standardise(path.draw_latent(keys[0], batch["audio_mean"], batch["audio_std"]))
    noise = jax.random.normal(keys[1], data.shape, jnp.float32)
    if config.immiscible:
        noise = couple_noise(data, noise, group=config.coupling_group, layout=layout)
    t, r = sample_times(keys[2], data.shape[0], config.time), None
    if config.map.enabled:
        t, r = draw_intervals(jax.random.fold_in(key, _INTERVALS), t, config.map.velocity_share)
    dropout = config.condition_dropout if training else 0.0
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
        r=r,
        video=video,
        text=text,
        text_len=batch["text_len"],
        dropout_keys=jax.random.split(keys[4], data.shape[0]) if training else None,
    )


def network_losses(
    weights: Any,
    constants: Any,
    examples: Examples,
    step: jax.Array | int,
    *,
    config: StepConfig,
    layout: Layout,
    head: Head = NO_HEAD,
) -> tuple[Losses, Float[Array, ""]]:
    """Return the losses of a network, or of a flow map, and the alignment loss; 0 without a head.

    Args:
      weights: the network's as they are stored, or `FlowMapWeights`.
      constants: the network's constants.
      step: number of finished training steps, on which a flow map's targets depend.
    """

    def merged(stored: Any) -> Flowley:
        return merge_model(config.model, layout.gather_weights(stored, skip=_BLOCKS), constants)

    if not isinstance(weights, FlowMapWeights):
        return velocity_losses(
            merged(weights),
            examples._replace(r=None),
            config.flow,
            layout.gather_weights,
            layout.gather_weights(head),
        )
    trained, teacher, averaged = (merged(stored) for stored in weights)
    target = flow_map_target(
        teacher,
        averaged,
        examples,
        alpha_at(step, config.total_steps, config.flow.map),
        config.flow,
        layout.gather_weights,
    )
    return velocity_losses(trained, examples._replace(target=target), config.flow, layout.gather_weights)


@jax.named_scope("flow_map_target")
def flow_map_target(
    teacher: Flowley,
    averaged: Flowley,
    examples: Examples,
    alpha: jax.Array | float,
    config: FlowConfig,
    gather_weights: GatherWeights = identity,
) -> Float[Array, "B Ta C"]:
    """Return the target of the mean velocity from t to r; see `mean_velocity_target`.

    Args:
      teacher: gives the velocity, with guidance folded in.
      averaged: gives the mean velocity after the portion α of the step.
      alpha: α.
      gather_weights: applied to each block's weights where the block is computed.
    """
    assert examples.r is not None
    conditions = (examples.video, examples.text, examples.text_len)
    velocity = teacher_velocity(teacher, examples.noisy, *conditions, examples.t, config.map, gather_weights)

    def mean_velocity(x: jax.Array, t: jax.Array, r: jax.Array) -> jax.Array:
        return averaged(x, *conditions, t, r, gather_weights=gather_weights)

    return mean_velocity_target(examples.noisy, velocity, examples.t, examples.r, mean_velocity, alpha=alpha)


def velocity_losses(
    model: Flowley,
    examples: Examples,
    config: FlowConfig,
    gather_weights: GatherWeights = identity,
    head: Head = NO_HEAD,
) -> tuple[Losses, Float[Array, ""]]:
    """Return the losses of the velocity that the network predicts, and the alignment loss; 0 without a head.

    Args:
      gather_weights: applied to each block's weights where the block is computed.
    """
    velocity, audio_stream = model.velocity_and_audio_stream(
        examples.noisy,
        examples.video,
        examples.text,
        examples.text_len,
        examples.t,
        examples.r,
        deterministic=examples.dropout_keys is None,
        rng=examples.dropout_keys,
        gather_weights=gather_weights,
    )
    if examples.r is not None:
        losses = adaptive_losses(velocity, examples.target, config.loss, power=config.map.weight_power)
    else:
        losses = flow_losses(velocity, examples.target, config.loss)
    if not head:
        return losses, jnp.zeros(())
    clean = path.data_at_end(examples.noisy, examples.target, examples.t)
    return losses, alignment_loss(head, audio_stream, clean)


@jax.named_scope("coupling")
def couple_noise(
    data: Float[Array, "B Ta C"], noise: Float[Array, "B Ta C"], *, group: int, layout: Layout
) -> Float[Array, "B Ta C"]:
    """Return the noise that immiscible coupling assigns to each latent; it is the same on any mesh.

    The assignment is an auction of hundreds of rounds. If it were split over devices, they would wait for
    each other in every round. So each device runs the auctions of the groups that its own shard of the batch
    belongs to; a group within one shard never leaves its device.

    Args:
      group: number of consecutive examples that are coupled with each other.
    """
    batch = len(data)
    size = group_size(batch, group)
    if layout.mesh.size == 1:
        return noise[immiscible_assignment(data, noise, group=size)]
    split, replicated = PartitionSpec(BATCH_AXES), PartitionSpec()
    if batch % layout.batch_shards:
        shard, in_spec, out_spec = batch, replicated, replicated
    else:
        shard = batch // layout.batch_shards
        in_spec, out_spec = (replicated if shard % size else split), split
    couple = functools.partial(_couple_shard, group=size, shard=shard)
    return jax.shard_map(couple, in_specs=(in_spec, in_spec), out_specs=out_spec, check_vma=False)(
        data, noise
    )


def _couple_shard(data: jax.Array, noise: jax.Array, *, group: int, shard: int) -> jax.Array:
    """Return the noise for one device's `shard` latents, given its own or all latents of the batch."""
    if shard % group == 0:
        return noise[immiscible_assignment(data, noise, group=group)]
    groups = len(data) // group
    # A shard that does not align with groups can overlap one more group at each end.
    needed = 1 if group % shard == 0 else min(groups, shard // group + 2)
    first_row = jax.lax.axis_index(BATCH_AXES) * shard
    start = group * jnp.minimum(first_row // group, groups - needed)
    data, noise = (jax.lax.dynamic_slice_in_dim(x, start, needed * group) for x in (data, noise))
    coupled = noise[immiscible_assignment(data, noise, group=group)]
    return jax.lax.dynamic_slice_in_dim(coupled, first_row - start, shard)


def _accumulate(gradient: Callable[..., Any], parameters: Any, examples: Examples, microbatches: int) -> Any:
    """Return the means of gradients and losses over microbatches that are computed one after another."""
    if microbatches == 1:
        return gradient(parameters, examples)
    # Every microbatch takes rows from the whole batch, and so from every device.
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0), examples)
    shapes = jax.eval_shape(gradient, parameters, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(total, microbatch):
        return jax.tree.map(jnp.add, total, gradient(parameters, microbatch)), None

    # XLA:CPU differentiates convolutions inside a loop 26 times slower than outside.
    total, _ = jax.lax.scan(add, zeros, split, unroll=platform_in_use() == "cpu")
    return jax.tree.map(lambda leaf: leaf / microbatches, total)


def _named(losses: Losses) -> Metrics:
    return {"loss": losses.total, "velocity_loss": losses.velocity, "direction_loss": losses.direction}
