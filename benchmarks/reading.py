"""Measure how fast a host reads training batches, compared with its disk, and how much memory it needs:
make benchmark-reading

Records of the published sizes are written once, with text features in which no row is zero, as from T5. Every
figure comes from its own process, so that peak memory is that of one reader. Before each, the records are
dropped from the page cache.
"""

import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.common import header, host
from flowley_jax.cli import run_main
from flowley_jax.common.files import write_text
from flowley_jax.common.number_flags import define_int
from flowley_jax.common.ranges import Range
from flowley_jax.data.dims import Dims
from flowley_jax.data.pipeline import train_batches
from flowley_jax.data.record import Example, write_records

DIMS = Dims(audio_length=250, audio_dim=20, video_length=64, video_dim=768, text_length=77, text_dim=1024)
BATCH = 64
COUNTS = (500, 4000)
SECONDS = 15.0

_OUT = flags.DEFINE_string("out", "benchmarks/results/reading", "Folder for reading.json.")
_SCRATCH = flags.DEFINE_string("scratch", "runs/reading", "Folder for the records: 5 GB, removed at the end.")
_READ = flags.DEFINE_string("read", None, "For internal use: records to read and measure.")
_WORKERS = define_int(
    "workers", 0, "For internal use: number of worker processes.", Range(least=0, most=1024)
)


def main() -> int:
    """Run the command line: write the records, measure, print a table and write JSON."""
    if _READ.value:
        print(json.dumps(_read(Path(_READ.value), _WORKERS.value)))
        return 0
    scratch = Path(_SCRATCH.value)
    result = {
        **header("reading"),
        "device": host(),
        "batch": BATCH,
        "rows": [],
    }
    try:
        for dtype in ("float32", "float16"):
            for count in COUNTS:
                folder = scratch / f"{dtype}_{count}"
                dims = dataclasses.replace(DIMS, feature_dtype=dtype)
                print(f"writing {count} records, features {dtype}", file=sys.stderr, flush=True)
                shutil.rmtree(folder, ignore_errors=True)
                write_records(folder, dims, {"train": lambda count=count: _examples(count)})
                disk = _raw_speed(folder)
                for workers in (0, 1, 2):
                    row = {
                        "features": dtype,
                        "records": count,
                        "workers": workers,
                        **_measure(folder, workers),
                    }
                    row["disk_bytes_per_second"] = disk
                    row["record_bytes"] = _size(folder) / count
                    result["rows"].append(row)
                    print(_line(row), flush=True)
                shutil.rmtree(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    path = Path(_OUT.value) / "reading.json"
    write_text(path, json.dumps(result, indent=2) + "\n")
    print(f"figures: {path}")
    return 0


def _examples(count: int) -> Iterator[Example]:
    draw = np.random.default_rng(0)
    text = draw.standard_normal((DIMS.text_length, DIMS.text_dim), np.float32)
    for index in range(count):
        yield {
            "audio_mean": draw.standard_normal((DIMS.audio_length, DIMS.audio_dim), np.float32),
            "audio_std": draw.random((DIMS.audio_length, DIMS.audio_dim), np.float32),
            "video_features": draw.standard_normal((DIMS.video_length, DIMS.video_dim), np.float32),
            "text_features": text,
            "text_len": np.int32(20),
            "id": f"{index:06d}",
            "caption": "a ball bounces on the floor",
            "label": "ball",
        }


def _measure(folder: Path, workers: int) -> dict[str, float]:
    _drop_from_page_cache(folder)
    command = [sys.executable, "-m", "benchmarks.reading", f"--read={folder}", f"--workers={workers}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _read(folder: Path, workers: int) -> dict[str, float]:
    batches = train_batches(folder, batch_size=BATCH, seed=0, num_workers=workers, feature_dtype="bfloat16")
    next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        next(batches)
        count += BATCH
    seconds = time.perf_counter() - started
    own, children = (
        resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {"examples_per_second": count / seconds, "peak_bytes": own, "largest_worker_bytes": children}


def _raw_speed(folder: Path) -> float:
    """Return the bytes per second of reading the files from start to end."""
    _drop_from_page_cache(folder)
    started, total = time.perf_counter(), 0
    for path in _files(folder):
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(2**22):
                total += len(chunk)
    return total / (time.perf_counter() - started)


def _drop_from_page_cache(folder: Path) -> None:
    os.sync()
    for path in _files(folder):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.array_record*") if path.is_file()]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))


def _line(row: dict) -> str:
    moved = row["examples_per_second"] * row["record_bytes"] / 1e6
    return (
        f"{row['features']}, {row['records']} records of {row['record_bytes'] / 1e3:.0f} kB, "
        f"{row['workers']} workers: {row['examples_per_second']:.0f} examples/s, {moved:.0f} MB/s of the "
        f"disk's {row['disk_bytes_per_second'] / 1e6:.0f}, {row['peak_bytes'] / 2**20:.0f} MiB"
    )


if __name__ == "__main__":
    run_main(main)
