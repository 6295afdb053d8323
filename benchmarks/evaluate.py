"""Measure how fast the evaluation's networks and its reading of clips are, and how much memory extraction
needs: make benchmark-evaluate

Networks have the published sizes, random weights and inputs of 8 s. Their figures are next to the floor: the
FLOPs of their programs at the measured rate of a large matrix product.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.common import header, host
from benchmarks.evaluate_tasks import NETWORKS, READINGS, Row, measure_networks, measure_reading
from benchmarks.jax_tasks import device
from flowley_jax.cli import run_main
from flowley_jax.common.files import write_text
from flowley_jax.common.number_flags import define_int
from flowley_jax.common.ranges import Range
from flowley_jax.errors import FlowleyError
from flowley_jax.media.write import write_audio

READING, MEMORY = "reading", "memory"
# Sounds of the measurement of memory.
_SOUND_SECONDS, _SOUND_RATE = 8.0, 16_000

_OUT = flags.DEFINE_string("out", "benchmarks/results/evaluate", "Folder for the figures.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute type of the networks.")
_ONLY = flags.DEFINE_list(
    "only", [], f"What to measure: extractors, {READING}, or {MEMORY}; everything by default."
)
_TURNS = define_int("turns", 5, "Measurements of each figure.", Range(least=1, most=1000))
_SOUNDS = flags.DEFINE_list("sounds", ["64", "512"], "Numbers of sounds for the measurement of memory.")


def main() -> int:
    """Measure, print tables and write them with the figures.

    Older figures of what is not measured now are kept.
    """
    names = _ONLY.value or [*NETWORKS, READING, MEMORY]
    if unknown := set(names) - {*NETWORKS, READING, MEMORY}:
        raise FlowleyError(
            f"--only={sorted(unknown)[0]} must be one of {', '.join([*NETWORKS, READING, MEMORY])}"
        )
    path = Path(_OUT.value) / f"{device().replace(' ', '_')}.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    for part, name, figures in _measurements(names):
        result.setdefault(part, {})[name] = {**figures, **header("evaluate"), "jax": version("jax")}
        print(f"{part}: {name}: {figures}", file=sys.stderr, flush=True)
        result |= {"device": device(), "host": host()}
        write_text(path, json.dumps(result, indent=2) + "\n")
    tables = _tables(result)
    write_text(path.with_suffix(".md"), tables)
    print(tables)
    print(f"figures: {path}")
    return 0


def _measurements(names: Sequence[str]) -> Iterator[tuple[str, str, Row]]:
    """Yield the part of the figures, the name and the figures of each measurement."""
    with tempfile.TemporaryDirectory() as scratch:
        if MEMORY in names:
            for count in map(int, _SOUNDS.value):
                yield MEMORY, str(count), _measure_memory(Path(scratch) / str(count), count)
        if READING in names:
            for title, row in measure_reading(Path(scratch), turns=_TURNS.value):
                yield READING, title, row
    extractors = [name for name in NETWORKS if name in names]
    for name, row in measure_networks(extractors, dtype=_DTYPE.value, turns=_TURNS.value):
        yield row["dtype"], name, row


def _measure_memory(folder: Path, count: int) -> Row:
    """Return what a process needs to extract the features of sounds.

    Raises:
      FlowleyError: the process failed.
    """
    rng = np.random.default_rng(0)
    (folder / "sounds").mkdir(parents=True)
    for index in range(count):
        wave = rng.uniform(-0.5, 0.5, round(_SOUND_SECONDS * _SOUND_RATE)).astype(np.float32)
        write_audio(folder / "sounds" / f"{index:05d}.wav", wave, _SOUND_RATE)
    command = [
        *(sys.executable, "-m", "benchmarks.evaluate_worker", f"--sounds={folder / 'sounds'}"),
        *(f"--out={folder / 'features'}", f"--seconds={_SOUND_SECONDS}"),
    ]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise FlowleyError(f"the extraction of {count} sounds failed with code {process.returncode}")
    return json.loads(process.stdout)


def _tables(result: Row) -> str:
    """Return Markdown tables of all figures."""
    lines = [f"{result['device']}, {result['host']}; rates are medians, with the quartiles in brackets"]
    for dtype in ("float32", "bfloat16"):
        lines += _network_table(dtype, result.get(dtype, {}))
    if READING in result:
        lines += ["", "Reading of one clip of 8 s, 640 × 360, in one process:", ""]
        lines += ["| inputs of | clips/s | seconds per clip |", "|---|---|---|"]
        lines += [
            f"| {title} | {_rate(row)} | {row['seconds_per_clip']:.3f} |"
            for title, row in _in_order(result[READING], READINGS)
        ]
    if MEMORY in result:
        lines += ["", "Extraction of PANNs, tagger and level from sounds of 8 s, in one process:", ""]
        lines += ["| sounds | peak memory | seconds |", "|---|---|---|"]
        lines += [
            f"| {row['clips']} | {row['peak_bytes'] / 2**20:,.0f} MiB | {row['seconds']:.1f} |"
            for row in sorted(result[MEMORY].values(), key=lambda row: row["clips"])
        ]
    return "\n".join(lines) + "\n"


def _network_table(dtype: str, rows: dict[str, Row]) -> list[str]:
    if not rows:
        return []
    rate = float(np.median([row["matmul_flops_per_second"] for row in rows.values()])) / 1e9
    lines = ["", f"Networks in {dtype}, inputs of 8 s; matmul {rate:,.0f} GFLOP/s:", ""]
    lines += ["| extractor | clips at once | clips/s | seconds per clip | GFLOP per clip | share of matmul |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, row in _in_order(rows, NETWORKS):
        lines.append(
            f"| {name} | {row['clips_at_once']} | {_rate(row)} | {row['seconds_per_clip']:.3g} | "
            f"{_giga(row['flops_per_clip'])} | {100 * row['share']:.0f} % |"
        )
    return lines


def _in_order(rows: dict[str, Row], names: Iterable[str]) -> list[tuple[str, Row]]:
    return [(name, rows[name]) for name in names if name in rows]


def _giga(flops: float) -> str:
    return f"{flops / 1e9:,.1f}" if flops >= 1e9 else f"{flops / 1e9:.2g}"


def _rate(row: Row) -> str:
    low, middle, high = row["clips_per_second"]
    return f"{middle:.3g} ({low:.3g}–{high:.3g})"


if __name__ == "__main__":
    run_main(main)
