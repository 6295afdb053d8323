"""Plots whose curves stretch with the page while their labels keep their size.

The curves are an SVG that fills its box in any aspect ratio. Ticks and labels are HTML at positions in per
cent, so they stay readable on a narrow screen and follow the page's light and dark colours.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
from matplotlib.ticker import MaxNLocator

# Side of the square coordinate system that is stretched over the box of the SVG.
EXTENT = 1000


def ticks(low: float, high: float, count: int) -> list[tuple[float, str]]:
    """Return about `count` round values within [low, high], each as (position in [0, 1], label)."""
    values = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    span = high - low
    inside = [value for value in values if low - 1e-9 * span <= value <= high + 1e-9 * span]
    return [((value - low) / span, f"{value:.4g}") for value in inside]


def time_axis(seconds: float) -> str:
    """Return the tick labels below an element that spans `seconds`."""
    marks = "".join(_tick("left", at, f"{label} s") for at, label in ticks(0.0, seconds, 5))
    return f'<div class="x-ticks">{marks}</div>'


def plot(
    shapes: str,
    *,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
) -> str:
    """Return a plot with axes.

    Args:
      shapes: SVG elements in coordinates from 0 to EXTENT, with y pointing down.
      x_ticks, y_ticks: positions in [0, 1] and labels.
      x_label, y_label: labels of the axes.
    """
    grid = "".join(f'<path class="grid" d="M0 {EXTENT * (1 - at):.1f}H{EXTENT}"/>' for at, _ in y_ticks)
    return (
        '<div class="plot">'
        f'<div class="y-label">{escape(y_label)}</div>'
        f'<div class="y-ticks">{"".join(_tick("bottom", at, label) for at, label in y_ticks)}</div>'
        f'<svg viewBox="0 0 {EXTENT} {EXTENT}" preserveAspectRatio="none" aria-hidden="true">'
        f"{grid}{shapes}</svg>"
        f'<div class="x-ticks">{"".join(_tick("left", at, label) for at, label in x_ticks)}</div>'
        f'<div class="x-label">{escape(x_label)}</div>'
        "</div>"
    )


def path_data(x: np.ndarray, y: np.ndarray) -> str:
    """Return the SVG path through points (N,) in [0, 1] × [0, 1], with y pointing up."""
    points = zip(EXTENT * x, EXTENT * (1 - y), strict=True)
    return "M" + "L".join(f"{right:.1f} {down:.1f}" for right, down in points)


def _tick(side: str, at: float, label: str) -> str:
    return f'<span style="{side}:{100 * at:.2f}%">{escape(label)}</span>'
