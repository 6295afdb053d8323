"""Measure how fast a host makes records, how long each step takes, and how much memory it needs:
make benchmark-extract

A few clips of moving noise, as long and large as those of VGGSound, are written once and read under many
names. Rates and steps are measured with them. Memory, which must not grow with the table, is measured over
many rows of small clips.
"""

import collections
import concurrent.futures
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from absl import flags

from benchmarks.common import header, host, seconds_of
from data_prep.feature_store import FeatureStore
from data_prep.read_clip import ClipReader, DecodedClip
from data_prep.record_components import RecordComponents
from data_prep.records import RunOptions, prepare_records
from data_prep.settings import RecordSettings
from data_prep.worker_pool import WorkerPool
from flowley_jax.audio.mel import log_mel
from flowley_jax.audio.protocols import samples_for
from flowley_jax.cli import run_main
from flowley_jax.common.files import write_text
from flowley_jax.common.number_flags import define_int
from flowley_jax.common.ranges import Range
from flowley_jax.media.read import read_audio, read_frames
from flowley_jax.media.write import write_video

LARGE = RecordSettings(seconds=8.0, video_fps=8.0)
SMALL = RecordSettings(seconds=1.0, video_fps=8.0, frame_size=64)
REPEATS = 5

_OUT = flags.DEFINE_string("out", "benchmarks/results/extract", "Folder for extract.json.")
_SCRATCH = flags.DEFINE_string("scratch", "runs/extract", "Folder for clips and records, removed at the end.")
_CLIPS = define_int(
    "clips", 200, "Number of clips of 10 s, 640 × 360, for rates.", Range(least=1, most=100_000)
)
_ROWS = define_int(
    "rows", 10_000, "Number of rows of small clips, for memory.", Range(least=1, most=10_000_000)
)


def main() -> int:
    """Run the command line: measure, print and write JSON."""
    scratch = Path(_SCRATCH.value)
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        large = _write_table(scratch / "large", _CLIPS.value, seconds=10.0, size=(360, 640))
        result = {
            **header("extract"),
            "device": host(),
            "milliseconds": _measure_steps(large.parent / "0.mp4", scratch),
            "decoding": [_measure_decoding(large, count) for count in (1, os.cpu_count() or 1)],
            "whole": _measure_run(large, scratch / "large_records", LARGE),
            "memory": _measure_memory(scratch),
        }
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    path = Path(_OUT.value) / "extract.json"
    write_text(path, json.dumps(result, indent=2) + "\n")
    print(_summary(result))
    print(f"figures: {path}")
    return 0


def _measure_steps(clip: Path, scratch: Path) -> dict[str, float]:
    """Return the time in ms that each step takes on one core for a clip of 8 s."""
    components = RecordComponents(LARGE)
    encoder, mel = components.video_encoder, components.mel
    seconds = samples_for(LARGE.seconds, mel) / mel.sample_rate
    frames = read_frames(clip, fps=LARGE.video_fps, size=encoder.frame_size, seconds=LARGE.seconds)
    wave = read_audio(clip, sample_rate=mel.sample_rate, seconds=seconds)
    features = {"video_features": encoder(frames), "log_mel": log_mel(wave, mel)}
    store = FeatureStore(str(scratch / "features"))
    steps: dict[str, Callable[[], Any]] = {
        "frames": lambda: read_frames(
            clip, fps=LARGE.video_fps, size=encoder.frame_size, seconds=LARGE.seconds
        ),
        "sound": lambda: read_audio(clip, sample_rate=mel.sample_rate, seconds=seconds),
        "mel": lambda: log_mel(wave, mel),
        "picture encoder": lambda: encoder(frames),
        "text encoder": lambda: components.text_encoder(["a dog barks at the gate"]),
        "write features": lambda: store.write("media", "0" * 24, features),
    }
    return {
        name: round(1000 * min(seconds_of(step) for _ in range(REPEATS)), 2) for name, step in steps.items()
    }


def _measure_decoding(table: Path, processes: int) -> dict[str, float]:
    paths = [(str(path),) for path in sorted(table.parent.glob("*.mp4"))]
    pool = WorkerPool(ClipReader.create(RecordComponents(LARGE)), count=processes, time_limit=120.0)
    try:
        # Starting the processes is not measured.
        collections.deque(pool.map(paths[:processes]), maxlen=0)
        started, before = time.perf_counter(), psutil.cpu_times()
        clips = list(pool.map(paths))
        seconds, after = time.perf_counter() - started, psutil.cpu_times()
    finally:
        pool.close()
    assert all(isinstance(clip, DecodedClip) for clip in clips)
    busy = (after.user + after.system - before.user - before.system) / seconds
    return {"processes": processes, "clips_per_second": len(paths) / seconds, "busy_cores": busy}


def _measure_run(table: Path, out: Path, settings: RecordSettings) -> dict[str, float]:
    started = time.perf_counter()
    manifest = prepare_records(table, out, settings, RunOptions(decoders=os.cpu_count() or 1))
    seconds = time.perf_counter() - started
    clips = sum(manifest["examples"].values())
    return {"clips": clips, "seconds": seconds, "clips_per_second": clips / seconds}


def _measure_memory(scratch: Path) -> dict:
    table = _write_table(scratch / "small", _ROWS.value, seconds=1.2, size=(64, 64))
    finished, samples = threading.Event(), []
    store = FeatureStore(str(scratch / "small_records/features"))

    def watch() -> None:
        while not finished.wait(5.0):
            stored, rejected = store.keys("media")
            samples.append((len(stored) + len(rejected), _resident_bytes()))

    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        watching = threads.submit(watch)
        try:
            whole = _measure_run(table, scratch / "small_records", SMALL)
        finally:
            finished.set()
        watching.result()
    return {**whole, "rows_and_bytes": samples}


def _resident_bytes() -> int:
    """Return the memory of this process and of the processes that read clips for it."""
    this = psutil.Process()
    total = 0
    for process in [this, *this.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _write_table(folder: Path, rows: int, *, seconds: float, size: tuple[int, int]) -> Path:
    """Write a clip table of hard links to a few clips, and return its path."""
    folder.mkdir(parents=True)
    print(f"writing {rows} clips of {seconds} s, {size[1]} × {size[0]}", file=sys.stderr, flush=True)
    originals = [folder.parent / f"{folder.name}{index}.mp4" for index in range(4)]
    for index, path in enumerate(originals):
        draw = np.random.default_rng(index)
        coarse = draw.integers(0, 255, (round(24 * seconds), size[0] // 8, size[1] // 8, 3)).astype(np.uint8)
        wave = draw.uniform(-0.5, 0.5, round(44_100 * seconds)).astype(np.float32)
        frames = coarse.repeat(8, axis=1).repeat(8, axis=2)
        write_video(path, frames, 24.0, audio=wave, sample_rate=44_100, crf=30)
    lines = ["video_path\ttext_description\tsplit\tlabel"]
    for row in range(rows):
        os.link(originals[row % len(originals)], folder / f"{row}.mp4")
        lines.append(f"{row}.mp4\tnoise number {row}\t{'valid' if row % 20 == 0 else 'train'}\tnoise")
    write_text(folder / "clips.tsv", "\n".join(lines) + "\n")
    return folder / "clips.tsv"


def _summary(result: dict) -> str:
    lines = [f"{name}: {value:.1f} ms per clip" for name, value in result["milliseconds"].items()]
    lines += [
        f"decoding in {row['processes']} processes: {row['clips_per_second']:.1f} clips/s, "
        f"{row['busy_cores']:.2f} cores busy"
        for row in result["decoding"]
    ]
    whole, memory = result["whole"], result["memory"]
    lines.append(f"records of {whole['clips']} clips: {whole['clips_per_second']:.1f} clips/s")
    samples = memory["rows_and_bytes"]
    lines.append(f"{memory['clips']} small clips: {memory['clips_per_second']:.1f} clips/s, memory after")
    lines += [
        f"  {rows} rows: {size / 2**20:.0f} MiB" for rows, size in samples[:: max(1, len(samples) // 6)]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
