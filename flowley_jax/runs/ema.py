"""Post-hoc EMA: power-function averages, synthesised at any length (Karras et al., arXiv 2312.02696)."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def gamma_of(sigma_rel: float) -> float:
    """Return the exponent γ of the power function with relative standard deviation σ_rel.

    It is the largest real root of γ³ + 7γ² + (16 − σ⁻²)γ + (12 − σ⁻²).
    """
    inverse = sigma_rel**-2
    return float(max(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real))


def new_share(step: jax.Array | float, gamma: float, period: int = 1) -> jax.Array:
    """Return the share of the new parameters in the average, after `step` steps (1, 2, …).

    It is 1 − [(1 − 1/(n+1))·(1 − 1/(n+1+m))]^((1+γ)·m/2) for n = step and updates every m = `period` steps.
    Late in a run it is below 10⁻⁴; as a difference of float32 numbers near 1 it would be off by a percent.
    """
    logarithm = jnp.log1p(-1.0 / (step + 1.0)) + jnp.log1p(-1.0 / (step + 1.0 + period))
    return -jnp.expm1(logarithm * ((1.0 + gamma) * period / 2.0))


def update_averages(
    averages: Sequence[Any], parameters: Any, step: jax.Array, sigma_rels: Sequence[float]
) -> tuple[Any, ...]:
    """Return every EMA track after its update with the parameters of step `step` (1, 2, …)."""
    updated = []
    for average, sigma_rel in zip(averages, sigma_rels, strict=True):
        share = new_share(step, gamma_of(sigma_rel))
        updated.append(jax.tree.map(lambda a, p, s=share: a + s * (p - a), average, parameters))
    return tuple(updated)


def synthesis_weights(
    stored_steps: Sequence[float], stored_sigma_rels: Sequence[float], *, sigma_rel: float, step: float
) -> np.ndarray:
    """Return the weights of stored averages whose sum best fits the average of length `sigma_rel` at `step`.

    They solve a least-squares problem (Karras et al., algorithm 3) and need not sum to one.

    Args:
      stored_steps, stored_sigma_rels: step and length of every stored average.

    Returns:
      (len(stored_steps),) float64.
    """
    times = np.asarray(stored_steps, np.float64)
    gammas = np.asarray([gamma_of(sigma) for sigma in stored_sigma_rels], np.float64)
    target = gamma_of(sigma_rel)
    gram = _inner_product(times[:, None], gammas[:, None], times[None, :], gammas[None, :])
    overlap = _inner_product(times, gammas, np.float64(step), np.float64(target))
    return np.linalg.solve(gram, overlap)


def with_unit_sum(weights: np.ndarray) -> np.ndarray:
    """Return the weights scaled so that they sum to one, as those of an average must.

    `synthesis_weights` of few stored averages can sum to much less: a single snapshot of the lengths 0.05 and
    0.1 gives 0.86 for a length of 0.03, which would shrink every parameter. LoRA's product A·B would shrink
    twice.
    """
    return weights / weights.sum()


def weighted_sum(trees: Iterable[Any], weights: Sequence[float]) -> Any:
    """Return Σ wᵢ·treeᵢ, summed leaf by leaf in float64 and cast back to the leaves' type.

    Besides the sum, only one tree is held at a time if `trees` makes them one by one.
    """
    remaining = iter(trees)
    first = next(remaining)
    dtypes = jax.tree.map(lambda leaf: np.asarray(leaf).dtype, first)
    total = _scaled(first, weights[0])
    del first
    # Not zip, which keeps a tree until the next one is made.
    for weight in weights[1:]:
        total = jax.tree.map(np.add, total, _scaled(next(remaining), weight))
    return jax.tree.map(lambda leaf, dtype: np.asarray(leaf, dtype), total, dtypes)


def _scaled(tree: Any, weight: float) -> Any:
    return jax.tree.map(lambda leaf: weight * np.asarray(leaf, np.float64), tree)


def _inner_product(end_a, gamma_a, end_b, gamma_b):
    """Return ∫ p_a p_b over the shorter span, p(τ; T, γ) = (γ+1)·τ^γ / T^(γ+1); logarithms avoid overflow."""
    shorter = np.minimum(end_a, end_b)
    exponent = gamma_a + gamma_b + 1.0
    log_value = (
        np.log((gamma_a + 1.0) * (gamma_b + 1.0) / exponent)
        + exponent * np.log(shorter)
        - (gamma_a + 1.0) * np.log(end_a)
        - (gamma_b + 1.0) * np.log(end_b)
    )
    return np.exp(log_value)
