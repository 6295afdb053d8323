"""Processing of long sequences in overlapping windows, with the result of processing them as a whole."""

from collections.abc import Callable

import numpy as np


def in_windows(
    program: Callable[[np.ndarray], np.ndarray], x: np.ndarray, *, window: int, context: int, rate: int
) -> np.ndarray:
    """Apply a local program to windows of one length, and join the outputs that lie far from the cuts.

    Args:
      program: function from (B, window, …) to (B, rate·window, …). An output may depend on at most `context`
        input steps on each side, and on the distance to an end of the sequence only within that reach.
      x: input (B, T, …).
      window: steps per window, more than twice `context`; the last window is moved back to end with `x`.
      context: input steps on each side that an output depends on.
      rate: output steps per input step.

    Returns:
      Output (B, rate·T, …), equal to `program(x)` up to rounding.

    Raises:
      ValueError: the window is too short for the context.
    """
    length = x.shape[1]
    if length <= window:
        return program(x)
    stride = window - 2 * context
    if stride < 1:
        raise ValueError(f"window={window} must be more than twice context={context}")
    pieces, done = [], 0
    while done < length:
        start = min(max(0, done - context), length - window)
        output = program(x[:, start : start + window])
        end = length if start + window == length else start + window - context
        pieces.append(output[:, rate * (done - start) : rate * (end - start)])
        done = end
    return np.concatenate(pieces, axis=1)
