"""Metrics of class probabilities: KL divergence of pairs, and Inception score of a set."""

import dataclasses
from typing import Literal

import numpy as np
from scipy.special import log_expit, log_softmax

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.feature_checks import checked_features, checked_pair

# The permutation of the clips and their division, as in the published implementation.
_SEED, SPLITS = 2020, 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class InceptionScore:
    """Mean and population standard deviation of the scores over the parts of a set."""

    mean: float
    std: float


def kl_divergences(
    evaluated: np.ndarray, reference: np.ndarray, *, kind: Literal["softmax", "sigmoid"] = "softmax"
) -> np.ndarray:
    """Return KL(reference ‖ evaluated) of each pair of clips, (n,); the metric is their mean.

    The classes of a clip sum to one (softmax), or each is taken by itself (sigmoid: Σ p (log p − log q),
    without the terms of 1 − p, as in the published implementation).

    Args:
      evaluated: logits (n, classes).
      reference: logits (n, classes) of the same clips.
      kind: how logits become probabilities.

    Raises:
      FlowleyError: the arrays differ in shape, are empty, or have values that are not finite.
    """
    mine, theirs = checked_pair(evaluated, reference)
    if len(mine) != len(theirs):
        raise FlowleyError(f"{len(mine)} evaluated and {len(theirs)} reference clips are not pairs")
    log_q, log_p = (
        log_softmax(logits, axis=1) if kind == "softmax" else log_expit(logits) for logits in (mine, theirs)
    )
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def inception_score(logits: np.ndarray, *, splits: int = SPLITS) -> InceptionScore:
    """Return the Inception score: exp of the mean KL(p ‖ mean p) over each of several parts of a set.

    It depends on the order of the clips, which the published implementation sorts by id (Salimans et al.
    2016).

    Args:
      logits: (n, classes) in the order of ids.
      splits: number of parts.

    Raises:
      FlowleyError: there are fewer clips than parts, or values that are not finite.
    """
    logits = checked_features(logits, "evaluated", least=splits)
    count = len(logits)
    # This old generator's permutation is part of the metric.
    log_p = log_softmax(logits[np.random.RandomState(_SEED).permutation(count)], axis=1)
    scores = []
    for part in range(splits):
        rows = log_p[part * count // splits : (part + 1) * count // splits]
        p = np.exp(rows)
        # A class without any probability adds nothing, as 0 · log 0 = 0.
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(p > 0.0, p * (rows - np.log(p.mean(axis=0))), 0.0)
        scores.append(np.exp(terms.sum(axis=1).mean()))
    return InceptionScore(mean=float(np.mean(scores)), std=float(np.std(scores)))
