"""Similarity of paired embeddings: IB-score (video and sound) and CLAP score (text and sound)."""

import numpy as np

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.feature_checks import checked_pair

_LEAST_NORM = 1e-8


def cosine_similarities(evaluated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of embeddings, (n,); the metric is their mean.

    An embedding of zeros has the similarity 0 to all others.

    Args:
      evaluated: (n, D) embeddings of the evaluated sounds.
      reference: (n, D) embeddings of their videos or texts.

    Raises:
      FlowleyError: the arrays differ in shape, are empty, or have values that are not finite.
    """
    a, b = checked_pair(evaluated, reference)
    if len(a) != len(b):
        raise FlowleyError(f"{len(a)} evaluated and {len(b)} reference embeddings are not pairs")
    norms = (np.maximum(np.linalg.norm(rows, axis=1), _LEAST_NORM) for rows in (a, b))
    return (a * b).sum(axis=1) / np.prod(list(norms), axis=0)
