"""Markdown tables of `benchmarks.long_clips`."""

import itertools
from typing import Any

import numpy as np

# What the rows of the table are, in its order.
SOUNDS = {
    "generated": "sampled for the whole video",
    "joined": "sampled for the clips, then joined",
    "ceiling": "real, encoded and decoded",
    "real": "real",
}


def quality_table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table: mean and standard deviation over the demonstrations."""
    lines = [
        "| video | sound | prompt | F1 | median error | F1 near seams | F1 elsewhere "
        "| flux at seams ÷ elsewhere | level | mean peak | highest true peak |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = list(SOUNDS)
    rows = sorted(rows, key=lambda row: (row["seconds"], order.index(row["sound"]), row["prompt"]))
    groups = itertools.groupby(rows, key=lambda row: (row["seconds"], row["sound"], row["prompt"]))
    for (seconds, sound, prompt), group in groups:
        runs = list(group)
        cells = [
            *(f"{seconds:g} s", SOUNDS[sound], prompt or "–"),
            *(_spread(runs, "f1", 3), _spread(runs, "median_abs_error_ms", 1, " ms")),
            *(_spread(runs, "f1_near", 3), _spread(runs, "f1_elsewhere", 3)),
            *(_spread(runs, "flux_ratio", 2), _spread(runs, "rms_db", 1, " dB")),
            *(_spread(runs, "mean_peak", 2), _spread(runs, "true_peak", 2)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def length_table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of the cost by length."""
    lines = [
        "| video | steps | seconds per second | first call | compilation | peak memory | model loaded |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (str(row["steps"]), row["seconds_of_video"])):
        length, mebibyte = row["seconds_of_video"], 2**20
        lines.append(
            f"| {length:g} s | {row['steps'] or 'model'} | {row['seconds'] / length:.3f} "
            f"| {_seconds(row['first_seconds'])} | {row['compile_seconds']:.0f} s "
            f"| {row['peak_bytes'] / mebibyte:.0f} MiB "
            f"| {row['loaded_bytes'] / mebibyte:.0f} MiB |"
        )
    return "\n".join(lines) + "\n"


def clips_table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of the cost of folders of different and of equal clips."""
    equal = {(row["kind"], row["steps"]): row for row in rows if row["folder"] == "equal"}
    lines = [
        "| clips | lengths | total | longest | steps | programs | time | compilation | ÷ equal clips |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        base = equal.get((row["kind"], row["steps"]))
        ratio = f"{row['seconds'] / base['seconds']:.2f}" if base else "–"
        lines.append(
            f"| {row['clips']} | {row['lengths']} | {row['seconds_of_video']:g} s "
            f"| {row['longest_seconds']:g} s | {row['steps'] or 'model'} | {sum(row['programs'].values())} "
            f"| {row['seconds']:.1f} s | {row['compile_seconds']:.1f} s | {ratio} |"
        )
    return "\n".join(lines) + "\n"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} s"


def _spread(rows: list[dict[str, Any]], key: str, digits: int, unit: str = "") -> str:
    values = [row[key] for row in rows if row[key] is not None]
    if not values:
        return "–"
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}{unit}"
