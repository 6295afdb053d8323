"""The auction against scipy's exact solver, and its kernel, in Pallas's interpreter, against both."""

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

ASSIGN = jax.jit(assign)


def _excess(costs: np.ndarray, chosen: np.ndarray) -> float:
    """Total above the least one, in spreads (see `assign`)."""
    rows = np.arange(len(costs))
    best = costs[linear_sum_assignment(costs)].sum()
    spread = (costs - costs.min(axis=1, keepdims=True)).mean()
    return float((costs[rows, chosen].sum() - best) / max(spread, 1e-30))


def _clouds(size: int, kind: str) -> np.ndarray:
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
def test_total_is_the_least_one_but_for_the_last_increments(kind):
    costs = _clouds(128, kind)
    chosen = np.asarray(ASSIGN(costs[None])[0])
    assert sorted(chosen) == list(range(128))
    # Costs of 25 in float32, the tie-breaks of 128 rows.
    assert -1e-4 < _excess(costs, chosen) < 128 * LAST_INCREMENT + 1e-4


def test_distances_of_independent_clouds_give_the_exact_assignment():
    costs = _clouds(128, "independent")
    np.testing.assert_array_equal(ASSIGN(costs[None])[0], linear_sum_assignment(costs)[1])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 6), min_size=49, max_size=49))
def test_whole_numbers_with_many_ties(numbers):
    costs = np.reshape(np.asarray(numbers, np.float32), (7, 7))
    chosen = np.asarray(ASSIGN(costs[None])[0])
    assert sorted(chosen) == list(range(7))
    # Totals are whole numbers: less than one above the least is the least.
    assert costs[np.arange(7), chosen].sum() == costs[linear_sum_assignment(costs)].sum()


def test_matrices_do_not_disturb_each_other():
    costs = np.stack([_clouds(32, kind) for kind in ("independent", "on a line", "some silent")])
    together = ASSIGN(costs)
    for matrix, chosen in zip(costs, together, strict=True):
        np.testing.assert_array_equal(ASSIGN(matrix[None])[0], chosen)


@pytest.mark.parametrize("value", [0.0, 3.5, np.nan, np.inf])
def test_costs_that_say_nothing_still_give_everyone_a_column(value):
    chosen = ASSIGN(jnp.full((2, 9, 9), value, jnp.float32))
    for row in np.asarray(chosen):
        assert sorted(row) == list(range(9))


def test_one_broken_row_ends_too():
    costs = _clouds(16, "independent")
    costs[3] = np.nan
    assert sorted(np.asarray(ASSIGN(costs[None])[0])) == list(range(16))


# The second way of interpreting fills memory with NaN until it is written, and takes its time.
@pytest.mark.parametrize(
    ("size", "interpret"), [(136, True), (2, True), (24, pltpu.InterpretParams(uninitialized_memory="nan"))]
)
def test_the_kernel_holds_the_same_auctions(size, interpret):
    costs = np.stack([_clouds(size, "independent"), _clouds(size, "loud and soft")])
    found = jax.jit(functools.partial(assign, interpret=interpret))(costs)
    np.testing.assert_array_equal(found, ASSIGN(costs))


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_the_kernel_ends_where_costs_say_nothing(value):
    (chosen,) = np.asarray(assign(jnp.full((1, 5, 5), value, jnp.float32), interpret=True))
    assert sorted(chosen) == list(range(5))
