"""The update at the end of a step: AdamW next to Optax's, steps that are skipped, and the update ratios."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from flowley_jax.common.trees import named_leaves
from flowley_jax.runs.ema import update_averages
from flowley_jax.training.alignment import NO_HEAD
from flowley_jax.training.optimizer import make_optimizer
from flowley_jax.training.state import StepConfig, TrainState
from flowley_jax.training.update import updated_state

STEPS = 12


def _start(kind="adamw", **changes):
    config = tiny.experiment(Path("records"))
    optim = {
        "kind": kind,
        "learning_rate": 1e-2,
        "warmup_steps": 3,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        **changes,
    }
    step = dataclasses.replace(
        StepConfig.from_experiment(config), optim=dataclasses.replace(config.optim, **optim), log_every=2
    )
    layers = {"kernel": {"value": jnp.zeros((5, 7))}, "bias": {"value": jnp.zeros((7,))}}
    parameters = _random({"blocks": {"0": layers, "1": layers}, "final_conv": layers}, 0)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        parameters=parameters,
        frozen={},
        constants={},
        optimizer=make_optimizer(step.optim, step.total_steps).init(parameters),
        averages=(parameters,) * len(step.sigma_rels),
        head=NO_HEAD,
    )
    return step, state


def _random(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), tree)


@functools.partial(jax.jit, static_argnames="config")
def _update(state, gradients, config, *, finite=True):
    norm = optax.tree.norm(gradients)
    return updated_state(state, gradients, norm, finite=jnp.asarray(finite), config=config)


def _close(found, expected, *, rtol):
    for (name, one), other in zip(named_leaves(found).items(), jax.tree.leaves(expected), strict=True):
        scale = np.abs(np.asarray(other)).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * scale, err_msg=name)


def test_adamw_is_that_of_optax_with_and_without_clipping():
    config, state = _start()
    optimizer = make_optimizer(config.optim, config.total_steps)
    weights, moments, averages = state.parameters, state.optimizer, state.averages
    for step in range(1, STEPS + 1):
        # Every second gradient is below the limit of the norm.
        gradients = _random(weights, step)
        factor = (0.5 if step % 2 else 20.0) / optax.tree.norm(gradients)
        gradients = jax.tree.map(lambda leaf, factor=factor: factor * leaf, gradients)
        updates, moments = jax.jit(optimizer.update)(gradients, moments, weights)
        weights = optax.apply_updates(weights, updates)
        averages = update_averages(averages, weights, jnp.asarray(step), config.sigma_rels)
        state, _ = _update(state, gradients, config)
        assert int(state.step) == step
    # Rounding differs: Optax divides where one factor is multiplied here.
    _close(state.parameters, weights, rtol=1e-6)
    _close(state.optimizer, moments, rtol=1e-6)
    _close(state.averages, averages, rtol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_that_is_not_finite_changes_only_its_number(kind):
    config, state = _start(kind)
    gradients = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan), state.parameters)
    after, ratios = _update(state._replace(step=jnp.asarray(1, jnp.int32)), gradients, config, finite=False)
    assert int(after.step) == 2 and not any(ratios.values())
    for one, other in zip(
        jax.tree.leaves(after._replace(step=state.step)), jax.tree.leaves(state), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_update_ratios_are_those_of_the_weights_before_and_after(kind, weight_decay):
    config, state = _start(kind, weight_decay=weight_decay)
    gradients = _random(state.parameters, 1)
    state, ratios = _update(state, gradients, config)
    assert not any(ratios.values())
    after, ratios = _update(state, gradients, config)
    squares = {}
    leaves = zip(named_leaves(state.parameters).items(), jax.tree.leaves(after.parameters), strict=True)
    for (name, old), new in leaves:
        first, second, *_ = name.split("/")
        block = f"{first}/{second}" if second.isdigit() else first
        old, new = np.asarray(old, np.float64), np.asarray(new, np.float64)
        sums = squares.setdefault(f"update_ratio/{block}", np.zeros(2))
        sums += ((new - old) ** 2).sum(), (old**2).sum()
    # Weights of about 1 that move by 0.01 are known to 1e-5 of the movement.
    assert ratios == pytest.approx({name: np.sqrt(a / b) for name, (a, b) in squares.items()}, rel=2e-5)
