"""Antialiased bicubic resizing of 8-bit images in integers, as PyTorch's vision library does it.

Pillow's filter is the same but has other weights in integers, so its pixels differ by a level here and there.
"""

import functools

import numpy as np
from scipy.sparse import csr_array

# The cubic's free parameter is −0.5; the filter covers two pixels of the smaller image on each side.
_SUPPORT = 2.0
# Weights are integers of at most 16 bits with the sign, in units of 2^-precision.
_MOST_PRECISION, _LARGEST_WEIGHT = 22, 2**15


def with_short_side(image: np.ndarray, length: int) -> np.ndarray:
    """Return an image whose short side has a length, and whose other side is rounded down.

    Args:
      image: (H, W, C) uint8.
      length: pixels of the short side. An image that has it is returned as it is.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    if short == length:
        return image
    columns = image.transpose(1, 0, 2).reshape(width, -1)
    columns = _resized(columns, length * width // short).reshape(-1, height, image.shape[2])
    rows = columns.transpose(1, 0, 2).reshape(height, -1)
    return _resized(rows, length * height // short).reshape(-1, len(columns), image.shape[2])


def _resized(pixels: np.ndarray, length: int) -> np.ndarray:
    """Return uint8 pixels (N, M), resized along the first axis."""
    weights, precision = _integer_weights(len(pixels), length)
    sums = weights @ pixels.astype(np.int32)
    sums += 1 << (precision - 1)
    sums >>= precision
    return np.clip(sums, 0, 255, out=sums).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _integer_weights(before: int, after: int) -> tuple[csr_array, int]:
    """Return the weights (after, before) int32, and the number of bits that are behind the point."""
    weights = _weights(before, after)
    precision = _MOST_PRECISION
    while np.floor(weights.max() * 2.0**precision + 0.5) >= _LARGEST_WEIGHT:
        precision -= 1
    scaled = weights * 2.0**precision
    # Halves are rounded away from zero.
    return csr_array(np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)), precision


def _weights(before: int, after: int) -> np.ndarray:
    scale = before / after
    stretch = max(scale, 1.0)
    centre = scale * (np.arange(after)[:, None] + 0.5)
    first = np.maximum(np.floor(centre - _SUPPORT * stretch + 0.5), 0)
    end = np.minimum(np.floor(centre + _SUPPORT * stretch + 0.5), before)
    tap = np.arange(before)[None]
    weights = np.where((first <= tap) & (tap < end), _cubic((tap - centre + 0.5) / stretch), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < _SUPPORT, far, 0.0))
