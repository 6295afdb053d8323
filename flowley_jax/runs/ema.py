"""Post-hoc EMA: power-function averages, synthesised at any length (Karras et al., arXiv 2312.02696)."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def gamma_of(sigma_rel: float) -> float:
    """Return the exponent γ of the power function with relative standard deviation σ_rel.

    It is the largest real root of γ³ + 7γ² + (16 − σ⁻²)γ + (12 − σ⁻²).
    """
    inverse = sigma_rel**-2
    return float(max(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real))


def keep_share(step: jax.Array | float, gamma: float, period: int = 1) -> jax.Array | float:
    """Return the share of the old average that the update after `step` steps (1, 2, …) keeps.

    It is [(1 − 1/(n+1))·(1 − 1/(n+1+m))]^((1+γ)·m/2) for n = step and updates every m = `period` steps.
    """
    base = (1.0 - 1.0 / (step + 1.0)) * (1.0 - 1.0 / (step + 1.0 + period))
    return base ** ((1.0 + gamma) * period / 2.0)


def update_averages(
    averages: Sequence[Any], parameters: Any, step: jax.Array, sigma_rels: Sequence[float]
) -> tuple[Any, ...]:
    """Return every EMA track after its update with the parameters of step `step` (1, 2, …)."""
    updated = []
    for average, sigma_rel in zip(averages, sigma_rels, strict=True):
        share = keep_share(step, gamma_of(sigma_rel))
        updated.append(jax.tree.map(lambda a, p, s=share: s * a + (1.0 - s) * p, average, parameters))
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


def weighted_sum(trees: Sequence[Any], weights: Sequence[float]) -> Any:
    """Return Σ wᵢ·treeᵢ, summed leaf by leaf in float64 and cast back to the leaves' type."""

    def combine(*leaves):
        total = sum(
            weight * np.asarray(leaf, np.float64) for weight, leaf in zip(weights, leaves, strict=True)
        )
        return np.asarray(total).astype(leaves[0].dtype)

    return jax.tree.map(combine, *trees)


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
