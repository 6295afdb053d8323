"""The cost of long sounds: time and memory by length, and programs by the number of different lengths.

Every measurement has a process of its own, `benchmarks.long_clips_worker`, without a stored compilation.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.joined_clips import join_pictures
from flowley_jax.common.files import write_text
from flowley_jax.errors import FlowleyError
from flowley_jax.media.write import write_video

FPS, SIZE = 24, 64
# A longer video repeats its first minute.
MINUTE_FRAMES = 60 * FPS
# Videos up to this many seconds are sampled twice; the second time, nothing is left to compile or to start.
# Before longer ones, a video of this length is sampled.
_REPEATED_SECONDS = 60.0
CLIPS = 40
# Variables that would let a process read programs that another one has compiled.
_CACHE_VARIABLES = ("JAX_COMPILATION_CACHE_DIR",)


def measure_length(workdir: Path, scratch: Path, *, seconds: float, steps: int | None) -> dict[str, Any]:
    """Return the cost of the sound of one video of a moving ball.

    Args:
      workdir: folder of a training run.
      scratch: folder for the video and its sound, emptied before.
      seconds: length of the video, at most a minute or whole minutes.
      steps: solver steps; None for those of the run.

    Raises:
      FlowleyError: the sampling failed.
    """
    folder = _empty(scratch)
    frames = round(seconds * FPS)
    write_ball(folder / "videos" / "ball.mp4", frames)
    is_long = seconds > _REPEATED_SECONDS
    if is_long:
        write_ball(folder / "warm_up" / "minute.mp4", round(_REPEATED_SECONDS * FPS))
    answer = run_worker(workdir, folder, steps=steps, turns=1 if is_long else 2, warm_up=is_long)
    last = answer["turns"][-1]
    return {
        "seconds_of_video": frames / FPS,
        "seconds": last["seconds"] - last["compile_seconds"],
        "first_seconds": None if is_long else answer["turns"][0]["seconds"],
        "compile_seconds": answer["turns"][0]["compile_seconds"],
        "programs": answer["turns"][0]["programs"],
        "loaded_bytes": answer["loaded_bytes"],
        "peak_bytes": answer["peak_bytes"],
    }


def measure_clips(
    workdir: Path, scratch: Path, frames: Sequence[int], *, steps: int | None
) -> dict[str, Any]:
    """Return the cost of a folder of clips, its compilations included.

    Args:
      workdir: folder of a training run.
      scratch: folder for the videos and their sounds, emptied before.
      frames: frames of each clip, at most those of a minute.
      steps: solver steps; None for those of the run.

    Raises:
      FlowleyError: the sampling failed.
    """
    folder = _empty(scratch)
    for index, count in enumerate(frames):
        write_ball(folder / "videos" / f"ball_{index:02d}.mp4", count)
    answer = run_worker(workdir, folder, steps=steps, turns=1)
    return {
        "clips": len(frames),
        "lengths": len(set(frames)),
        "seconds_of_video": sum(frames) / FPS,
        "longest_seconds": max(frames) / FPS,
        **answer["turns"][0],
        "peak_bytes": answer["peak_bytes"],
    }


def clip_lengths(window_seconds: float) -> dict[str, dict[str, list[int]]]:
    """Return the frames of forty clips of forty lengths, and of forty equal ones that cost as many windows.

    "short" clips have at most one window each, whatever their length. "long" ones have 1 to 40 s, and their
    equal ones the mean of that.
    """
    window = round(window_seconds * FPS)
    short = [window - index for index in range(CLIPS)]
    long = [FPS * (index + 1) for index in range(CLIPS)]
    return {
        "short": {"different": short, "equal": [window] * CLIPS},
        "long": {"different": long, "equal": [sum(long) // CLIPS] * CLIPS},
    }


def write_ball(path: Path, frames: int) -> None:
    """Write a silent video of a ball that moves to and fro, `SIZE` × `SIZE` pixels, `FPS` frames per second.

    Raises:
      FlowleyError: more than a minute is asked for, and it is not whole minutes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if frames <= MINUTE_FRAMES:
        write_video(path, ball_frames(frames), FPS, preset="ultrafast")
        return
    minutes, rest = divmod(frames, MINUTE_FRAMES)
    if rest:
        raise FlowleyError(f"a video of {frames / FPS:g} s must be at most a minute long, or whole minutes")
    minute = path.parent.parent / "minute.mp4"
    write_video(minute, ball_frames(MINUTE_FRAMES), FPS, preset="ultrafast")
    join_pictures([minute] * minutes, path)


def ball_frames(frames: int) -> np.ndarray:
    """Return frames of a ball that crosses the picture once per second, uint8 (frames, SIZE, SIZE, 3)."""
    pixels = np.arange(SIZE)
    x = SIZE * (0.5 + 0.4 * np.cos(np.pi * np.arange(frames) / FPS))
    distance = np.hypot(pixels[None, None, :] - x[:, None, None], pixels[None, :, None] - SIZE / 2)
    return np.where(distance < SIZE / 8, 220, 30).astype(np.uint8)[..., None].repeat(3, axis=-1)


def run_worker(
    workdir: Path, folder: Path, *, steps: int | None, turns: int, warm_up: bool = False
) -> dict[str, Any]:
    """Sample `folder`/videos in a process, and return what it measured.

    With `warm_up`, `folder`/warm_up is sampled before, and not measured.

    Raises:
      FlowleyError: the process failed; the end of its log is quoted.
    """
    command = [
        *(sys.executable, "-m", "benchmarks.long_clips_worker"),
        *(f"--workdir={workdir}", f"--videos={folder / 'videos'}"),
        *(f"--out={folder / 'sounds'}", f"--turns={turns}"),
        *([] if steps is None else [f"--steps={steps}"]),
        *([f"--warm_up={folder / 'warm_up'}"] if warm_up else []),
    ]
    environment = {name: value for name, value in os.environ.items() if name not in _CACHE_VARIABLES}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    write_text(folder / "log.txt", process.stderr)
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise FlowleyError(
            f"sampling failed with code {process.returncode}: {reason}; see {folder / 'log.txt'}"
        )
    return json.loads(process.stdout)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "videos").mkdir(parents=True)
    return folder
