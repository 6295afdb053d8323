"""DeSync: the offset between picture and sound that Synchformer finds (Iashin et al. 2024), in seconds."""

import numpy as np

from flowley_jax.errors import FlowleyError

# The classes of Synchformer's head, in seconds; published numbers are means of float32 values.
OFFSETS = np.linspace(-2.0, 2.0, 21, dtype=np.float32).astype(np.float64)


def offset_magnitudes(logits: np.ndarray) -> np.ndarray:
    """Return the magnitude of the most likely offset, (…) in seconds; the metric is their mean.

    Args:
      logits: (…, 21) of Synchformer's head, for the first and for the last 14 segments of each clip.

    Raises:
      FlowleyError: there is no logit, another number of classes, or a value that is not a number.
    """
    logits = np.asarray(logits)
    if not logits.size or logits.shape[-1] != len(OFFSETS):
        raise FlowleyError(f"logits {logits.shape} must be (…, {len(OFFSETS)}), one for each offset")
    if np.isnan(logits).any():
        raise FlowleyError("logits of offsets have values that are not numbers")
    return np.abs(OFFSETS)[logits.argmax(axis=-1)]
