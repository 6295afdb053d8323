"""Estimate optical flow by polynomial expansion (Farnebäck 2003).

The settings are those that AV-Align uses (Yariv et al. 2023, arXiv 2309.16429). The results are those of
OpenCV's `calcOpticalFlowFarneback(…, 0.5, 3, 15, 3, 5, 1.2, 0)`, except for rounding.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from scipy.ndimage import correlate1d, uniform_filter1d

from flowley_jax.errors import FlowleyError

# Every level has half the size of the one before, and both of its sides have this many pixels at least.
_HALVINGS, _SMALLEST_SIDE = 3, 32
# Polynomials describe a neighbourhood of 2·5 + 1 pixels, weighted by a Gaussian.
_REACH, _SIGMA = 5, 1.2
# Equations are averaged over 15 × 15 pixels.
_WINDOW, _ITERATIONS = 15, 3
# Keeps the equations solvable where the picture is flat.
_REGULARISER = 1e-3
# Weights of pixels near an edge, from the edge inwards.
_EDGE_WEIGHTS = (0.14, 0.14, 0.4472, 0.4472, 0.4472)
# Integer weights of red, green and blue, whose sum is 2**14.
_RED, _GREEN, _BLUE, _GRAY_BITS = 4899, 9617, 1868, 14


def gray(image: np.ndarray) -> np.ndarray:
    """Return the luma of an RGB image.

    Args:
      image: uint8 (H, W, 3).

    Returns:
      uint8 (H, W).
    """
    red, green, blue = np.moveaxis(image.astype(np.int32), -1, 0)
    weighted = _RED * red + _GREEN * green + _BLUE * blue
    return ((weighted + (1 << (_GRAY_BITS - 1))) >> _GRAY_BITS).astype(np.uint8)


def mean_magnitudes(images: Iterable[np.ndarray]) -> Iterator[float]:
    """Yield the mean length of the flow from each image to the next one, in pixels.

    Two images are in memory at a time.

    Args:
      images: gray images (H, W) with values from 0 to 255.

    Raises:
      FlowleyError: two images differ in size.
    """
    before = None
    for image in images:
        after = _expansions(image)
        if before is not None:
            yield float(np.hypot(*_flow(before, after)).mean(dtype=np.float64))
        before = after


def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return where each pixel of the first image moves.

    Args:
      first, second: gray images (H, W) with values from 0 to 255.

    Returns:
      float32 (H, W, 2): movement to the right and down, in pixels.

    Raises:
      FlowleyError: the images differ in size.
    """
    return np.moveaxis(_flow(_expansions(first), _expansions(second)), 0, -1)


def _flow(first: list[np.ndarray], second: list[np.ndarray]) -> np.ndarray:
    """Return the flow (2, H, W) between two images, by their polynomials at each level."""
    if first[0].shape != second[0].shape:
        sizes = [f"{level[0].shape[2]}×{level[0].shape[1]}" for level in (first, second)]
        raise FlowleyError(f"images of {sizes[0]} and {sizes[1]} pixels have no flow; sizes must be equal")
    flow = np.zeros((2, *first[-1].shape[1:]), np.float32)
    for before, after in zip(reversed(first), reversed(second), strict=True):
        if flow.shape[1:] != before.shape[1:]:
            flow = 2.0 * _resized(_resized(flow, 1, before.shape[1]), 2, before.shape[2])
        weights = np.outer(_edge_weights(before.shape[1]), _edge_weights(before.shape[2]))
        for _ in range(_ITERATIONS):
            flow = _refined(flow, before, after, weights)
    return flow


def _refined(flow: np.ndarray, before: np.ndarray, after: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the flow (2, H, W) that explains how the polynomials change, searched near `flow`."""
    right, down = flow
    moved = _moved(after, before, right, down)
    # Of the second orders the mean; of the first orders half the change, and what `flow` explains of it.
    yy, xx = weights * 0.5 * (before[2:4] + moved[2:4])
    xy = weights * 0.25 * (before[4] + moved[4])
    y, x = weights * 0.5 * (before[:2] - moved[:2])
    y += yy * down + xy * right
    x += xy * down + xx * right
    products = np.stack(
        [yy * yy + xy * xy, (yy + xx) * xy, xx * xx + xy * xy, yy * y + xy * x, xy * y + xx * x]
    )
    for axis in (1, 2):
        products = uniform_filter1d(products, _WINDOW, axis, mode="nearest")
    left_yy, left_xy, left_xx, right_y, right_x = products
    determinant = left_yy * left_xx - left_xy * left_xy + np.float32(_REGULARISER)
    solution = np.stack([left_yy * right_x - left_xy * right_y, left_xx * right_y - left_xy * right_x])
    return solution / determinant


def _moved(after: np.ndarray, before: np.ndarray, right: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Return the polynomials (5, H, W) of `after` at the places that the flow leads to.

    Outside the image the first orders are 0, and the second orders are those of `before`.
    """
    _, height, width = after.shape
    y = np.arange(height, dtype=np.float32)[:, None] + down
    x = np.arange(width, dtype=np.float32) + right
    top, left = np.floor(y), np.floor(x)
    inside = (top >= 0) & (top < height - 1) & (left >= 0) & (left < width - 1)
    below, right_of = y - top, x - left
    above, left_of = 1.0 - below, 1.0 - right_of
    corner = np.where(inside, top, 0).astype(np.intp) * width + np.where(inside, left, 0).astype(np.intp)
    # Weights of the four pixels around a place, by their distance in memory from the first one.
    shares = {0: above * left_of, 1: above * right_of, width: below * left_of, width + 1: below * right_of}
    moved = np.concatenate([np.zeros_like(before[:2]), before[2:]])
    for plane, values in zip(moved, after.reshape(len(after), -1), strict=True):
        found = sum(share * values.take(corner + step, mode="clip") for step, share in shares.items())
        np.copyto(plane, found, where=inside)
    return moved


def _expansions(image: np.ndarray) -> list[np.ndarray]:
    """Return the polynomials (5, h, w) of an image at each level, from the full size down."""
    levels = []
    for halvings in range(_HALVINGS + 1):
        scale = 0.5**halvings
        if halvings and min(image.shape) * scale < _SMALLEST_SIDE:
            break
        smaller = image.astype(np.float32)
        for axis, side in enumerate(image.shape):
            blurred = correlate1d(smaller, _blur(halvings), axis, mode="mirror")
            smaller = _resized(blurred, axis, round(side * scale))
        levels.append(_polynomials(smaller))
    return levels


def _blur(halvings: int) -> np.ndarray:
    """Return the filter that precedes halving; the full size is smoothed a little, too."""
    if not halvings:
        return np.array([0.25, 0.5, 0.25])
    sigma = (2**halvings - 1) / 2
    return _gaussian(max(round(5 * sigma) | 1, 3) // 2, sigma)


def _gaussian(reach: int, sigma: float) -> np.ndarray:
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def _polynomials(image: np.ndarray) -> np.ndarray:
    """Return the coefficients (5, h, w) of y, x, y², x² and xy that fit each pixel's neighbourhood best."""
    place = np.arange(-_REACH, _REACH + 1)
    weights = _gaussian(_REACH, _SIGMA)
    filters = [weights * place**order for order in range(3)]
    second, fourth = (float((weights * place**order).sum()) for order in (2, 4))
    # Constant and squares are not independent of each other.
    gram = [[1.0, second, second], [second, fourth, second**2], [second, second**2, fourth]]
    inverse = np.linalg.inv(gram)

    def moment(vertical: np.ndarray, order: int) -> np.ndarray:
        return correlate1d(vertical, filters[order], 1, mode="nearest")

    rows = [correlate1d(image, values, 0, mode="nearest") for values in filters]
    constant = np.float32(inverse[0, 1]) * moment(rows[0], 0)
    return np.stack(
        [
            moment(rows[1], 0) / np.float32(second),
            moment(rows[0], 1) / np.float32(second),
            constant + np.float32(inverse[1, 1]) * moment(rows[2], 0),
            constant + np.float32(inverse[1, 1]) * moment(rows[0], 2),
            moment(rows[1], 1) / np.float32(second**2),
        ]
    )


def _resized(image: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Change the length of an axis by linear interpolation between the centres of pixels."""
    old = image.shape[axis]
    place = ((np.arange(length) + 0.5) * (old / length) - 0.5).clip(0.0, old - 1.0)
    low = np.floor(place).astype(np.intp)
    shape = [1] * image.ndim
    shape[axis] = length
    share = (place - low).astype(np.float32).reshape(shape)
    high = np.minimum(low + 1, old - 1)
    return (1.0 - share) * image.take(low, axis) + share * image.take(high, axis)


def _edge_weights(length: int) -> np.ndarray:
    weights = np.ones(length, np.float32)
    edge = np.array(_EDGE_WEIGHTS, np.float32)[:length]
    weights[: len(edge)] *= edge
    weights[::-1][: len(edge)] *= edge
    return weights
