"""Triangular filters of mel front ends whose areas are not normalised."""

import numpy as np


def triangles(points: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return filters that rise from one edge to the next and fall to the one after it.

    Args:
      points: (K,) frequencies of the spectrum.
      edges: (bins + 2,) ascending frequencies, in the unit in which the filters are triangles.

    Returns:
      float64 (K, bins). A filter that no frequency meets is zero.
    """
    points = points[:, None]
    rising = (points - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - points) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))
