"""Films of the golden data, which are formulas of place, channel and time."""

from collections.abc import Sequence

import numpy as np

# Height and width by name; all have 200 frames at 25 fps.
SIZES = {
    "landscape": (240, 320),
    "portrait": (360, 202),
    "wide": (360, 640),
    "short224": (224, 300),
    "odd": (271, 333),
}
FRAMES = 200


def film(name: str, frames: Sequence[int] = range(FRAMES)) -> np.ndarray:
    """Return some frames of a film, uint8 (T, H, W, 3)."""
    height, width = SIZES[name]
    t = np.asarray(frames, np.int32)[:, None, None, None]
    y, x = np.arange(height, dtype=np.int32)[:, None, None], np.arange(width, dtype=np.int32)[:, None]
    c = np.arange(3, dtype=np.int32)
    ramp = (x * (2 + c) + y * (3 - c) + 9 * t) // 4
    texture = (((x + 3 * t) * (y + 5 * c + 2 * t)) >> 4) % 61
    bar = (np.abs(x - (20 + 7 * t) % width) < 24) & (np.abs(y - height // 2) < 30)
    return ((ramp + texture + np.where(bar, 90, 0)) % 256).astype(np.uint8)
