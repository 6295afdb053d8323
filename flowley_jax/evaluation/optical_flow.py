"""Estimate optical flow by polynomial expansion (Farnebäck 2003), with the settings of AV-Align.

Yariv et al. 2023, arXiv 2309.16429, chose the settings.
"""

import itertools
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from flowley_jax.errors import FlowleyError


def gray(image: np.ndarray) -> np.ndarray:
    """Return the luma of an RGB image.

    Args:
      image: uint8 (H, W, 3).

    Returns:
      uint8 (H, W).
    """
    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)


def mean_magnitudes(images: Iterable[np.ndarray]) -> Iterator[float]:
    """Yield the mean length of the flow from each image to the next one, in pixels.

    Two images are in memory at a time.

    Args:
      images: gray images, uint8 (H, W).

    Raises:
      FlowleyError: two images differ in size.
    """
    for first, second in itertools.pairwise(images):
        yield float(np.hypot(*np.moveaxis(flow(first, second), -1, 0)).mean(dtype=np.float64))


def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return where each pixel of the first image moves.

    Args:
      first, second: gray images, uint8 (H, W).

    Returns:
      float32 (H, W, 2): movement to the right and down, in pixels.

    Raises:
      FlowleyError: the images differ in size.
    """
    if first.shape != second.shape:
        sizes = [f"{width}×{height}" for height, width in (first.shape, second.shape)]
        raise FlowleyError(f"images of {sizes[0]} and {sizes[1]} pixels have no flow; sizes must be equal")
    return cv2.calcOpticalFlowFarneback(
        first,
        second,
        np.zeros((*first.shape, 2), np.float32),
        pyr_scale=0.5,
        levels=3,
        winsize=15,
        iterations=3,
        poly_n=5,
        poly_sigma=1.2,
        flags=0,
    )
