"""The loss curves of a training run and how fast it ran."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from flowley_jax.report.plot import path_data, plot, ticks

Row = Mapping[str, float]

# More points than this are drawn faintly, with their running mean on top.
MANY_POINTS = 60


class Curve(NamedTuple):
    """One quantity of the history: its column, what the legend calls it and its colour class."""

    column: str
    name: str
    style: str


TOTAL = (Curve("train/loss", "training", "first"), Curve("valid/loss", "held-out clips", "second"))
PARTS = (
    Curve("train/velocity_loss", "velocity", "first"),
    Curve("train/direction_loss", "direction", "second"),
)


def curves_section(history: Sequence[Row]) -> str:
    """The section on training; empty if no row of `history` carries a loss."""
    charts = _chart("Loss", TOTAL, history) + _chart("Parts of the training loss", PARTS, history)
    if not charts:
        return ""
    return f'<section><h2>Training</h2><div class="charts">{charts}</div>{_speed(history)}</section>'


def column(history: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (N,) and finite values (N,) of the rows that have the column."""
    rows = [row for row in history if math.isfinite(row.get(name, math.nan))]
    return (
        np.array([row["step"] for row in rows], np.float64),
        np.array([row[name] for row in rows], np.float64),
    )


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred means over `window` values, over fewer at the ends; the shape stays (N,)."""
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
        # A line of no length with round ends is a dot, which a curve of one point needs to be seen at all.
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
    wait = f", of which {1000 * np.median(data_wait):.1f} ms waiting for data" if len(data_wait) else ""
    return f'<p class="note">A step took {1000 * np.median(step_time):.0f} ms (median){wait}.</p>'
