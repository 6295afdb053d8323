"""The section on training: loss curves and speed."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from flowley_jax.report.plot import path_data, plot, ticks

Row = Mapping[str, float]

# Longer curves are drawn faintly, with their running mean on top.
MANY_POINTS = 60


class Curve(NamedTuple):
    """One curve: its column of the history, its name in the legend and its CSS class."""

    column: str
    name: str
    style: str


TOTAL = (Curve("train/loss", "training", "first"), Curve("valid/loss", "held-out clips", "second"))
LOSS_TERMS = (
    Curve("train/velocity_loss", "velocity", "first"),
    Curve("train/direction_loss", "direction", "second"),
)


def curves_section(history: Sequence[Row]) -> str:
    """Return the HTML section on training; it is empty if no row of `history` has a loss."""
    charts = _chart("Loss", TOTAL, history) + _chart("Terms of the training loss", LOSS_TERMS, history)
    if not charts:
        return ""
    return f'<section><h2>Training</h2><div class="charts">{charts}</div>{_speed(history)}</section>'


def column(history: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps (N,) and values (N,) of the rows in which the column is finite."""
    rows = [row for row in history if math.isfinite(row.get(name, math.nan))]
    return (
        np.array([row["step"] for row in rows], np.float64),
        np.array([row[name] for row in rows], np.float64),
    )


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the centred means (N,) over `window` values, over fewer at both ends."""
    ones = np.ones(window)
    return np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")


def _chart(title: str, curves: Sequence[Curve], history: Sequence[Row]) -> str:
    drawn = [(curve, *column(history, curve.column)) for curve in curves]
    drawn = [(curve, steps, values) for curve, steps, values in drawn if len(steps)]
    if not drawn:
        return ""
    right = max(float(steps.max()) for _, steps, _ in drawn)
    low = min(0.0, *(float(values.min()) for _, _, values in drawn))
    high = max(float(values.max()) for _, _, values in drawn)
    right, high = right or 1.0, high if high > low else low + 1.0
    shapes = "".join(
        _shapes(curve, steps / right, (values - low) / (high - low)) for curve, steps, values in drawn
    )
    body = plot(
        shapes, x_ticks=ticks(0.0, right, 5), y_ticks=ticks(low, high, 5), x_label="step", y_label="loss"
    )
    legend = "".join(
        f'<span class="key {curve.style}">{escape(curve.name)}, last {values[-1]:.3g}</span>'
        for curve, _, values in drawn
    )
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><div class="legend">{legend}</div>{body}</figure>'
    )


def _shapes(curve: Curve, x: np.ndarray, y: np.ndarray) -> str:
    if len(x) <= MANY_POINTS:
        # A line of no length with round ends is a dot. Without dots, a curve of one point is invisible.
        dots = "".join(f"{path_data(x[i : i + 1], y[i : i + 1])}h0" for i in range(len(x)))
        return (
            f'<path class="{curve.style}" d="{path_data(x, y)}"/><path class="dot {curve.style}" d="{dots}"/>'
        )
    mean = running_mean(y, window=len(y) // 30 | 1)
    return (
        f'<path class="faint {curve.style}" d="{path_data(x, y)}"/>'
        f'<path class="{curve.style}" d="{path_data(x, mean)}"/>'
    )


def _speed(history: Sequence[Row]) -> str:
    _, step_time = column(history, "step_time")
    _, data_wait = column(history, "data_wait")
    if not len(step_time):
        return ""
    wait = f" ({1000 * np.median(data_wait):.1f} ms of it waiting for data)" if len(data_wait) else ""
    return f'<p class="note">Median time per step: {1000 * np.median(step_time):.0f} ms{wait}.</p>'
