"""The auction against scipy's exact solver, and its Pallas kernel, in the interpreter, against both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from flowley_jax.kernels.auction import LAST_INCREMENT, assign

ASSIGN = jax.jit(assign, static_argnames="rounds_per_iteration")


def _excess(costs: np.ndarray, assigned: np.ndarray) -> float:
    """Return how far the total cost is above the lowest one, in spreads (see `assign`)."""
    rows = np.arange(len(costs))
    lowest = costs[linear_sum_assignment(costs)].sum()
    spread = (costs - costs.min(axis=1, keepdims=True)).mean()
    return float((costs[rows, assigned].sum() - lowest) / max(spread, 1e-30))


def _distances(size: int, kind: str) -> np.ndarray:
    """Return the distances between two clouds of `size` points."""
    draw = np.random.default_rng(size)
    x, y = draw.normal(size=(2, size, 300))
    x = {
        "independent": x,
        "some silent": x * (draw.random((size, 1)) > 0.3),
        "loud and soft": x * np.exp(draw.normal(size=(size, 1))),
        "few, many times": np.repeat(x[: size // 8], 8, axis=0),
        "on a line": x[:, :1],
    }[kind]
    return cdist(x, y[:, : x.shape[1]]).astype(np.float32)


@pytest.mark.parametrize(
    "kind", ["independent", "some silent", "loud and soft", "few, many times", "on a line"]
)
def test_the_total_cost_is_the_lowest_up_to_the_last_increment(kind):
    costs = _distances(128, kind)
    assigned = np.asarray(ASSIGN(costs[None])[0])
    assert sorted(assigned) == list(range(128))
    # Costs are about 25 in float32; 128 rows may each differ by a tie.
    assert -1e-4 < _excess(costs, assigned) < 128 * LAST_INCREMENT + 1e-4


@pytest.mark.parametrize("rounds_per_iteration", [1, 8])
def test_distances_of_independent_clouds_get_the_exact_assignment(rounds_per_iteration):
    costs = _distances(128, "independent")
    assigned = ASSIGN(costs[None], rounds_per_iteration=rounds_per_iteration)[0]
    np.testing.assert_array_equal(assigned, linear_sum_assignment(costs)[1])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 6), min_size=49, max_size=49))
def test_integers_with_many_ties_get_the_lowest_total(numbers):
    costs = np.reshape(np.asarray(numbers, np.float32), (7, 7))
    assigned = np.asarray(ASSIGN(costs[None])[0])
    assert sorted(assigned) == list(range(7))
    # Totals are integers, so one that is less than 1 above the lowest is the lowest.
    assert costs[np.arange(7), assigned].sum() == costs[linear_sum_assignment(costs)].sum()


def test_matrices_do_not_affect_each_other():
    costs = np.stack([_distances(32, kind) for kind in ("independent", "on a line", "some silent")])
    together = ASSIGN(costs)
    for matrix, assigned in zip(costs, together, strict=True):
        np.testing.assert_array_equal(ASSIGN(matrix[None])[0], assigned)


@pytest.mark.parametrize("value", [0.0, 3.5, np.nan, np.inf])
def test_constant_costs_still_give_every_row_its_own_column(value):
    assigned = ASSIGN(jnp.full((2, 9, 9), value, jnp.float32))
    for row in np.asarray(assigned):
        assert sorted(row) == list(range(9))


def test_a_row_of_nan_does_not_keep_the_auction_from_ending():
    costs = _distances(16, "independent")
    costs[3] = np.nan
    assert sorted(np.asarray(ASSIGN(costs[None])[0])) == list(range(16))


# The last interpreter fills memory with NaN until it is written; it is slow.
@pytest.mark.parametrize(
    ("size", "interpret"), [(136, True), (2, True), (24, pltpu.InterpretParams(uninitialized_memory="nan"))]
)
def test_the_kernel_equals_the_xla_loop(size, interpret):
    costs = np.stack([_distances(size, "independent"), _distances(size, "loud and soft")])
    assigned = jax.jit(functools.partial(assign, interpret=interpret))(costs)
    np.testing.assert_array_equal(assigned, ASSIGN(costs))


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_the_kernel_ends_on_constant_costs(value):
    (assigned,) = np.asarray(assign(jnp.full((1, 5, 5), value, jnp.float32), interpret=True))
    assert sorted(assigned) == list(range(5))
