"""Checks of the features that metrics compare."""

import numpy as np

from flowley_jax.errors import FlowleyError

_SHOWN_ROWS = 5


def checked_features(features: np.ndarray, what: str, *, least: int = 1) -> np.ndarray:
    """Return features (n, D) as float64.

    Args:
      features: one row per clip, or per window of a clip.
      what: the set, such as "evaluated", for messages.
      least: smallest number of rows that the metric is defined for.

    Raises:
      FlowleyError: the array is not (n, D), has fewer rows, or has values that are not finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not features.shape[1]:
        raise FlowleyError(f"the {what} features have the shape {features.shape}; (clips, dims) is expected")
    if len(features) < least:
        raise FlowleyError(
            f"the {what} set has {len(features)} rows of features; at least {least} are needed"
        )
    if len(rows := np.flatnonzero(~np.isfinite(features).all(axis=1))):
        listed = ", ".join(map(str, rows[:_SHOWN_ROWS])) + (", …" if len(rows) > _SHOWN_ROWS else "")
        raise FlowleyError(f"{len(rows)} {what} features have values that are not finite: rows {listed}")
    return features


def checked_pair(
    evaluated: np.ndarray, reference: np.ndarray, *, least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return two sets of features (n, D) and (m, D) as float64; see `checked_features`.

    Raises:
      FlowleyError: as for `checked_features`, or the sets differ in D.
    """
    evaluated = checked_features(evaluated, "evaluated", least=least)
    reference = checked_features(reference, "reference", least=least)
    if evaluated.shape[1] != reference.shape[1]:
        raise FlowleyError(
            f"evaluated features have {evaluated.shape[1]} dims and reference features {reference.shape[1]}: "
            "they come from different networks"
        )
    return evaluated, reference
