"""Fréchet distance between the features of two sets of clips: FD, or FAD with the features of VGGish.

FD = ‖μx − μy‖² + Tr Cx + Tr Cy − 2 Tr (Cx Cy)^½ with means μ and covariances C (Heusel et al. 2017, eq. 6;
Kilgour et al. 2019). Published programs compute the root of a matrix that is not symmetric, which fails or
turns complex for few clips. Here, only singular values and eigenvalues of symmetric matrices are needed.
"""

import numpy as np

from flowley_jax.evaluation.feature_checks import checked_pair


def frechet_distance(evaluated: np.ndarray, reference: np.ndarray) -> float:
    """Return the Fréchet distance of two sets of features, in float64.

    With fewer clips than dims the covariances are singular: the distance exists, but depends on the number
    of clips.

    Args:
      evaluated: (n, D).
      reference: (m, D).

    Raises:
      FlowleyError: a set has fewer than two rows or values that are not finite, or the sets differ in D.
    """
    x, y = checked_pair(evaluated, reference, least=2)
    means = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
    # Rows of these are deviations, so that the covariance is their Gram matrix.
    x, y = ((rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1) for rows in (x, y))
    return float(means + np.square(x).sum() + np.square(y).sum() - 2.0 * _trace_of_root(x, y))


def _trace_of_root(x: np.ndarray, y: np.ndarray) -> float:
    """Return Tr (XᵀX YᵀY)^½, which is the sum of the singular values of XYᵀ."""
    if min(len(x), len(y)) <= x.shape[1]:
        return np.linalg.svd(x @ y.T, compute_uv=False).sum()
    # The same for smaller matrices: the eigenvalues of S YᵀY S, where S is the root of XᵀX.
    values, vectors = np.linalg.eigh(x.T @ x)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return np.sqrt(np.maximum(np.linalg.eigvalsh(root @ (y.T @ y) @ root), 0.0)).sum()
