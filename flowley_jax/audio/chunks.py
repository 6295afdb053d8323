"""Long sequences in pieces: a local program over windows that overlap equals one over the whole."""

from collections.abc import Callable

import numpy as np


def in_windows(
    program: Callable[[np.ndarray], np.ndarray], x: np.ndarray, *, window: int, context: int, rate: int
) -> np.ndarray:
    """Applies `program` to windows of one length and puts the parts together that lie far from their cuts.

    Args:
      program: (B, window, …) to (B, rate·window, …), whose result at a place depends on no more than
        `context` steps of its input on each side, and on the sequence's ends as on ends.
      x: (B, T, …).
      window: steps at a time, more than twice `context`; the last window moves back to end with x.

    Returns: (B, rate·T, …), what `program(x)` gives up to rounding.

    Raises:
      ValueError: the windows are too short for the context.
    """
    length = x.shape[1]
    if length <= window:
        return program(x)
    stride = window - 2 * context
    if stride < 1:
        raise ValueError(f"window={window} must be more than twice context={context}")
    parts, done = [], 0
    while done < length:
        start = min(max(0, done - context), length - window)
        found = program(x[:, start : start + window])
        end = length if start + window == length else start + window - context
        parts.append(found[:, rate * (done - start) : rate * (end - start)])
        done = end
    return np.concatenate(parts, axis=1)
