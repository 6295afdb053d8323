"""The end of a training step: the update of weights, moments and averages.

It spends most of its time on memory traffic. AdamW is therefore written out, with the formulas and the state
of `optax.adamw` after clipping by the global norm, so that no tree of updates is stored. Muon is Optax's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from flowley_jax.common.devices import platform_in_use
from flowley_jax.common.trees import path_name
from flowley_jax.runs.ema import update_averages
from flowley_jax.training.alignment import with_head, without_head
from flowley_jax.training.optimizer import ADAM_EPSILON, learning_rate, make_optimizer
from flowley_jax.training.state import StepConfig, TrainState


class Updated(NamedTuple):
    """Weights and optimiser after an update.

    Attributes:
      trained: the weights.
      optimizer: optax state.
      updates: returns the updates that were added to the weights.
    """

    trained: Any
    optimizer: Any
    updates: Callable[[], Any]


def updated_state(
    state: TrainState,
    gradients: Any,
    norm: Float[Array, ""],
    *,
    finite: Bool[Array, ""],
    config: StepConfig,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Return the state after a step, and its update ratios.

    Args:
      state: the state before the step.
      gradients: gradients of the parameters, and of the head for alignment.
      norm: norm of all gradients.
      finite: whether the loss and the norm are finite. Otherwise only the step number changes.

    Returns:
      The state, and `update_ratios`, which are 0 in steps that are not logged.
    """
    step = state.step + 1
    trained = with_head(state.parameters, state.head)
    with jax.named_scope("optimizer"):
        if config.optim.kind == "muon":
            updated = _muon(config, trained, state.optimizer, gradients, finite)
        else:
            updated = _adamw(config, trained, state.optimizer, gradients, norm, finite)
    parameters, head = without_head(updated.trained, state.head)
    with jax.named_scope("ema"):
        averages = update_averages(state.averages, parameters, step, config.sigma_rels)
        averages = _select(finite, averages, state.averages)
    ratios = update_ratios(
        lambda: without_head(updated.updates(), state.head)[0],
        parameters,
        when=finite & (step % config.log_every == 0),
    )
    after = state._replace(
        step=step, parameters=parameters, optimizer=updated.optimizer, averages=averages, head=head
    )
    return after, ratios


@jax.named_scope("update_ratios")
def update_ratios(
    updates: Callable[[], Any], parameters: Any, *, when: Bool[Array, ""]
) -> dict[str, jax.Array]:
    """Return ‖update‖ / ‖weights‖ of every block, and of every section outside of the blocks.

    Args:
      updates: returns the updates, which are only computed if the ratios are.
      parameters: the weights after the updates; the ratios are to the weights before.
      when: whether to compute the ratios, which reads the whole state once more; they are 0 otherwise.

    Returns:
      Scalars named `update_ratio/<block>`.
    """
    names = [_block_of(path_name(leaf_path)) for leaf_path, _ in jax.tree.leaves_with_path(parameters)]

    def compute():
        blocks: dict[str, list[tuple[jax.Array, jax.Array]]] = {name: [] for name in names}
        pairs = zip(jax.tree.leaves(updates()), jax.tree.leaves(parameters), strict=True)
        for name, (update, weight) in zip(names, pairs, strict=True):
            blocks[name].append((update, weight - update))
        return {
            name: _norm(update for update, _ in pairs) / _norm(weight for _, weight in pairs)
            for name, pairs in blocks.items()
        }

    ratios = jax.lax.cond(when, compute, lambda: {name: jnp.zeros(()) for name in names})
    return {f"update_ratio/{name}": value for name, value in ratios.items()}


def _muon(config: StepConfig, trained: Any, state: Any, gradients: Any, finite: Bool[Array, ""]) -> Updated:
    optimizer = make_optimizer(config.optim, config.total_steps)
    updates, new_state = optimizer.update(gradients, state, trained)
    new_trained, new_state = _select(
        finite, (optax.apply_updates(trained, updates), new_state), (trained, state)
    )
    return Updated(new_trained, new_state, lambda: updates)


def _adamw(
    config: StepConfig,
    trained: Any,
    state: Any,
    gradients: Any,
    norm: Float[Array, ""],
    finite: Bool[Array, ""],
) -> Updated:
    optim = config.optim
    # The state of `make_optimizer`: clipping, and AdamW's moments, decay and schedule.
    clip_state, (adam, decay_state, schedule) = state
    count = optax.safe_increment(adam.count)
    rate = jnp.asarray(learning_rate(optim, config.total_steps)(schedule.count))
    clip = jnp.where(norm < optim.clip_norm, 1.0, optim.clip_norm / norm)
    first_scale, second_scale = (1.0 / (1.0 - jnp.power(beta, count)) for beta in (optim.beta1, optim.beta2))

    def moments(gradient: Array, first: Array, second: Array) -> tuple[Array, Array]:
        gradient = clip * gradient
        new_first = optim.beta1 * first + (1 - optim.beta1) * gradient
        new_second = optim.beta2 * second + (1 - optim.beta2) * gradient**2
        return _apart((jnp.where(finite, new_first, first), jnp.where(finite, new_second, second)))

    def direction(first: Array, second: Array) -> Array:
        return first_scale * first / (jnp.sqrt(second_scale * second) + ADAM_EPSILON)

    def new_weight(weight: Array, first: Array, second: Array) -> Array:
        update = rate * (direction(first, second) + optim.weight_decay * weight)
        return _apart(jnp.where(finite, weight - update, weight))

    def update(weight: Array, first: Array, second: Array) -> Array:
        # From the new weight, because the old one was overwritten.
        moved = rate * direction(first, second)
        old_weight = (weight + moved) / (1.0 - rate * optim.weight_decay)
        return -(moved + rate * optim.weight_decay * old_weight)

    both = jax.tree.map(moments, gradients, adam.mu, adam.nu)
    first, second = jax.tree.transpose(jax.tree.structure(gradients), jax.tree.structure((0, 0)), both)
    new_trained = jax.tree.map(new_weight, trained, first, second)
    adam = adam._replace(count=jnp.where(finite, count, adam.count), mu=first, nu=second)
    schedule = schedule._replace(
        count=jnp.where(finite, optax.safe_increment(schedule.count), schedule.count)
    )
    return Updated(
        new_trained,
        (clip_state, (adam, decay_state, schedule)),
        lambda: jax.tree.map(update, new_trained, first, second),
    )


def _apart(arrays: Any) -> Any:
    """Return the arrays, which are computed before anything that uses them on a CPU.

    XLA:CPU has no loops with several results. It would compute these again in the loops that use them, from
    the old state, of which it would then keep a copy.
    """
    return jax.lax.optimization_barrier(arrays) if platform_in_use() == "cpu" else arrays


def _select(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)


def _norm(leaves) -> jax.Array:
    # A layer that is all zeros, such as the last one at first, must not divide by zero.
    return jnp.maximum(optax.tree.norm(list(leaves)), 1e-12)


def _block_of(name: str) -> str:
    first, second, *_ = name.split("/")
    return f"{first}/{second}" if second.isdigit() else first
