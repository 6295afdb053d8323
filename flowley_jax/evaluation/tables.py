"""Scores as a table: in a terminal, in a report, and in JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flowley_jax.evaluation.bootstrap import Interval
from flowley_jax.evaluation.feature_scores import AV_BENCHMARK, FeatureScores
from flowley_jax.evaluation.rows import MEANINGS
from flowley_jax.report.table import TableRow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """How a metric is shown.

    Attributes:
      metric: name of the metric.
      title: heading; an arrow shows which direction is better.
      digits: digits after the point.
      scale: factor of the shown value.
    """

    metric: str
    title: str
    digits: int = 2
    scale: float = 1.0


# In the order in which they are shown.
COLUMNS = (
    Column(metric="onset-F1", title="F1 ↑"),
    Column(metric="onset-precision", title="precision ↑"),
    Column(metric="onset-recall", title="recall ↑"),
    Column(metric="onset-error-ms", title="|error| ms ↓", digits=0),
    Column(metric="Greatest-Hits-count", title="onset count ↑"),
    Column(metric="Greatest-Hits-AP", title="onset AP ↑"),
    Column(metric="AV-Align", title="AV-Align ↑"),
    Column(metric="DeSync", title="DeSync s ↓", digits=3),
    Column(metric="IB-Score", title="IB ×100 ↑", scale=100.0),
    Column(metric="LAION-CLAP-Score", title="CLAP ×100 ↑", scale=100.0),
    Column(metric="MS-CLAP-Score", title="MS-CLAP ×100 ↑", scale=100.0),
    Column(metric="FD-PASST", title="FD PaSST ↓"),
    Column(metric="FD-PANN", title="FD PANNs ↓"),
    Column(metric="FD-VGG", title="FD VGGish ↓"),
    Column(metric="FD-TAGGER", title="FD tagger ↓"),
    Column(metric="KAD-PASST", title="KAD PaSST ↓"),
    Column(metric="KAD-PANN", title="KAD PANNs ↓"),
    Column(metric="KAD-VGG", title="KAD VGGish ↓"),
    Column(metric="KAD-TAGGER", title="KAD tagger ↓"),
    Column(metric="KL-PASST-softmax", title="KL PaSST ↓"),
    Column(metric="KL-PANNS-softmax", title="KL PANNs ↓"),
    Column(metric="KL-TAGGER-softmax", title="KL tagger ↓"),
    Column(metric="ISC-PASST-mean", title="IS PaSST ↑"),
    Column(metric="ISC-PANNS-mean", title="IS PANNs ↑"),
    Column(metric="ISC-TAGGER-mean", title="IS tagger ↑"),
    Column(metric="material-accuracy", title="material ↑"),
    Column(metric="motion-accuracy", title="motion ↑"),
    Column(metric="class-accuracy", title="classes ↑"),
    Column(metric="LUFS", title="LUFS", digits=1),
    Column(metric="clipped", title="clipped ↓"),
    Column(metric="silence", title="silence"),
)

TABLE_HINT = (
    "Arrows show which direction is better. Point at a figure for its interval and its number of clips. "
    "docs/evaluation.md explains the metrics."
)


def shown_columns(rows: Mapping[str, FeatureScores]) -> list[Column]:
    """Return the columns for which some row has a value."""
    return [column for column in COLUMNS if any(column.metric in row.metrics for row in rows.values())]


def table_text(rows: Mapping[str, FeatureScores]) -> str:
    """Return a table for a terminal: one line per metric, one column per row of the scores."""
    columns = shown_columns(rows)
    width = max([len(column.title) for column in columns], default=0)
    widths = {name: max(len(name), 8) for name in rows}
    lines = [" " * width + "".join(f"  {name:>{widths[name]}}" for name in rows)]
    counts = {name: max((sizes[0] for sizes in row.clips.values()), default=0) for name, row in rows.items()}
    lines.append(f"{'clips':{width}}" + "".join(f"  {counts[name]:>{widths[name]}}" for name in rows))
    for column in columns:
        cells = "".join(f"  {_value(row, column):>{widths[name]}}" for name, row in rows.items())
        lines.append(f"{column.title:{width}}{cells}")
    return "\n".join(lines)


def table_rows(rows: Mapping[str, FeatureScores]) -> list[TableRow]:
    """Return the table of scores for a report: one row per metric, one column per row of the scores."""
    return [
        TableRow(
            name=column.title,
            cells=[_value(row, column) for row in rows.values()],
            hints=[_hint(row, column) for row in rows.values()],
        )
        for column in shown_columns(rows)
    ]


def table_notes(rows: Mapping[str, FeatureScores]) -> list[str]:
    """Return the lines that explain a table of scores."""
    return [TABLE_HINT, *(f"{name}: {MEANINGS[name]}" for name in rows if name in MEANINGS)]


def difference_lines(differences: Mapping[str, Mapping[str, Interval]], first: str) -> list[str]:
    """Return a line for each metric whose interval of the difference excludes 0."""
    lines = []
    for name, intervals in differences.items():
        known = [(column, intervals[column.metric]) for column in COLUMNS if column.metric in intervals]
        apart = [(column, interval) for column, interval in known if interval.low * interval.high > 0.0]
        lines.append(
            f"{name} minus {first}: {len(apart)} of {len(known)} metrics differ beyond their 95 % intervals"
        )
        lines += [f"  {column.title}: {_difference(column, interval)}" for column, interval in apart]
    return lines


def difference_rows(differences: Mapping[str, Mapping[str, Interval]]) -> list[TableRow]:
    """Return the table of differences for a report: one row per metric, one column per system."""
    systems = differences.values()
    return [
        TableRow(
            name=column.title,
            cells=[
                _difference(column, intervals[column.metric]) if column.metric in intervals else "–"
                for intervals in systems
            ],
        )
        for column in COLUMNS
        if any(column.metric in intervals for intervals in systems)
    ]


def interval_groups(rows: Mapping[str, FeatureScores]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Return low end, estimate and high end of each metric of each row, for `intervals_section`."""
    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    for column in COLUMNS:
        for name, row in rows.items():
            if interval := row.intervals.get(column.metric):
                low, estimate, high = (
                    column.scale * end for end in (interval.low, interval.estimate, interval.high)
                )
                groups.setdefault(column.title, {})[name] = low, estimate, high
    return groups


def as_json(scores: FeatureScores) -> dict[str, Any]:
    """Return scores for JSON."""
    return dataclasses.asdict(scores)


def av_benchmark_metrics(scores: FeatureScores) -> dict[str, float]:
    """Return the metrics of av-benchmark's output_metrics.json."""
    return {name: value for name, value in scores.metrics.items() if name in AV_BENCHMARK}


def _value(row: FeatureScores, column: Column) -> str:
    value = row.metrics.get(column.metric)
    # Adding 0 turns −0 into 0.
    return "–" if value is None else f"{round(column.scale * value, column.digits) + 0.0:.{column.digits}f}"


def _difference(column: Column, interval: Interval) -> str:
    """Return a difference and half the length of its interval."""
    half = column.scale * (interval.high - interval.low) / 2.0
    return f"{column.scale * interval.estimate:+.{column.digits}f} ± {half:.{column.digits}f}"


def _hint(row: FeatureScores, column: Column) -> str:
    parts = []
    if interval := row.intervals.get(column.metric):
        low, high = (column.scale * end for end in (interval.low, interval.high))
        parts.append(f"95 % interval {low:.{column.digits}f} to {high:.{column.digits}f}")
    if counts := row.clips.get(column.metric):
        parts.append(f"{' and '.join(map(str, counts))} clips")
    if bandwidth := row.bandwidths.get(column.metric):
        parts.append(f"bandwidth {bandwidth:.4g}")
    return "; ".join(parts)
