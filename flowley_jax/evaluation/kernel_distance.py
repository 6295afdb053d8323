"""Kernel distances between the features of two sets of clips: KAD and KID.

Both are unbiased estimates of the squared maximum mean discrepancy (Gretton et al. 2012, eq. 3), so equal
distributions give values around zero, which can be negative.
"""

import dataclasses

import numpy as np
from scipy.spatial.distance import pdist

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.feature_checks import checked_pair

KERNELS, BANDWIDTHS = ("gaussian", "iq", "imq"), ("reference", "evaluated")
# KAD is stated times 100.
_SCALE = 100.0
_TINY = 1e-8
# Rows whose kernel values are in memory at once.
_BLOCK = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelAudioDistance:
    """KAD, and the bandwidth of its kernel."""

    score: float
    bandwidth: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelInceptionDistance:
    """Mean and population standard deviation of KID over random subsets."""

    mean: float
    std: float


def kernel_audio_distance(
    evaluated: np.ndarray,
    reference: np.ndarray,
    *,
    kernel: str = "gaussian",
    bandwidth: str = "reference",
) -> KernelAudioDistance:
    """Return the kernel audio distance of two sets of features, times 100 (Chung et al. 2025).

    The bandwidth is the lower median of the distances within one set. The paper takes the reference set, so
    that systems are comparable; the published program takes the evaluated set.

    Args:
      evaluated: (n, D).
      reference: (m, D).
      kernel: gaussian exp(−γd²), iq 1/(1 + γd²) or imq 1/√(1 + γd²), with γ = 1/(2·bandwidth² + 1e-8).
      bandwidth: the set whose distances decide the bandwidth.

    Raises:
      FlowleyError: a set has fewer than two rows or values that are not finite, the sets differ in D, or the
        kernel or the bandwidth has another name.
    """
    if kernel not in KERNELS or bandwidth not in BANDWIDTHS:
        raise FlowleyError(
            f"kernel={kernel!r} must be one of {', '.join(KERNELS)}, and bandwidth={bandwidth!r} "
            f"one of {', '.join(BANDWIDTHS)}"
        )
    x, y = checked_pair(evaluated, reference, least=2)
    width = _lower_median_distance(y if bandwidth == "reference" else x)
    gamma = 1.0 / (2.0 * width**2 + _TINY)
    within = _mean_kernel(x, x, kernel, gamma, diagonal=False) + _mean_kernel(
        y, y, kernel, gamma, diagonal=False
    )
    score = _SCALE * (within - 2.0 * _mean_kernel(x, y, kernel, gamma))
    return KernelAudioDistance(score=score, bandwidth=width)


def kernel_inception_distance(
    evaluated: np.ndarray, reference: np.ndarray, *, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> KernelInceptionDistance:
    """Return the kernel distance with the kernel (xᵀy/D + 1)³ over random subsets (Bińkowski et al. 2018).

    Args:
      evaluated: (n, D).
      reference: (m, D).
      subsets: number of subsets.
      size: rows of each subset.
      seed: seed of the choice of the subsets.

    Raises:
      FlowleyError: `subsets` is below one or `size` below two, a set has fewer rows than `size` or values
        that are not finite, or the sets differ in D.
    """
    if subsets < 1 or size < 2:
        raise FlowleyError(f"subsets={subsets} must be at least 1, and size={size} at least 2")
    x, y = checked_pair(evaluated, reference, least=size)
    rng, scores = np.random.RandomState(seed), []
    for _ in range(subsets):
        chosen_x = x[rng.choice(len(x), size, replace=False)]
        chosen_y = y[rng.choice(len(y), size, replace=False)]
        within = sum(
            (kernel.sum() - np.trace(kernel)) / (size * (size - 1))
            for kernel in (_cubic(chosen_x, chosen_x), _cubic(chosen_y, chosen_y))
        )
        scores.append(within - 2.0 * _cubic(chosen_x, chosen_y).mean())
    return KernelInceptionDistance(mean=float(np.mean(scores)), std=float(np.std(scores)))


def _lower_median_distance(rows: np.ndarray) -> float:
    distances = pdist(rows)
    middle = (len(distances) - 1) // 2
    distances.partition(middle)
    return float(distances[middle])


def _mean_kernel(x: np.ndarray, y: np.ndarray, kernel: str, gamma: float, *, diagonal: bool = True) -> float:
    """Return the mean of the kernel over all pairs of rows; without `diagonal`, over pairs of different rows.

    The kernel's matrix is never in memory as a whole.
    """
    total, pairs = 0.0, len(x) * len(y) - (0 if diagonal else len(x))
    y_squares = np.square(y).sum(axis=1)
    for start in range(0, len(x), _BLOCK):
        block = x[start : start + _BLOCK]
        squares = np.square(block).sum(axis=1)[:, None] + y_squares - 2.0 * block @ y.T
        values = _kernel_values(squares, kernel, gamma)
        total += values.sum() - (0.0 if diagonal else np.trace(values, offset=start))
    return float(total / pairs)


def _kernel_values(squares: np.ndarray, kernel: str, gamma: float) -> np.ndarray:
    scaled = gamma * np.maximum(squares, 0.0)
    if kernel == "gaussian":
        return np.exp(-scaled)
    return 1.0 / (1.0 + scaled) if kernel == "iq" else 1.0 / np.sqrt(1.0 + scaled)


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1.0) ** 3
