"""A worker of `benchmarks.long_clips`: sample the sounds of a folder's videos, and measure time and memory.

It writes one line of JSON. "turns" has, for every time that the folder is sampled, the seconds from videos
to written files, compilation included, and how often each program was compiled. "loaded_bytes" is the highest
resident memory until the model is loaded, "peak_bytes" that of the whole process.
"""

import collections
import contextlib
import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags

from benchmarks.common import seconds_of
from flowley_jax.cli import run_main
from flowley_jax.common.number_flags import define_int
from flowley_jax.common.ranges import Range
from flowley_jax.errors import FlowleyError
from flowley_jax.runs.workdir import read_config
from flowley_jax.sampling.inputs import Choices, find_inputs
from flowley_jax.sampling.outputs import write_sounds
from flowley_jax.sampling.sampler import Sampler

_COMPILED = "/jax/core/compile/backend_compile_duration"

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
_VIDEOS = flags.DEFINE_string("videos", None, "Folder of videos.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder for the videos with sound.", required=True)
_STEPS = define_int("steps", None, "Solver steps; by default those of the run.", Range(least=1, most=1000))
_WARM_UP = flags.DEFINE_string("warm_up", None, "Folder of videos that are sampled before, and not measured.")
_TURNS = define_int("turns", 1, "How often to sample the folder.", Range(least=1, most=1000))


class Compilations:
    """Listens to JAX's monitoring and adds up compilations from the last call of `take` on."""

    def __init__(self):
        self._seconds = 0.0
        self._programs: collections.Counter[str] = collections.Counter()
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def take(self) -> dict[str, Any]:
        """Return the compiler's seconds and the number of compilations by program, and start again."""
        taken = {"compile_seconds": self._seconds, "programs": dict(self._programs)}
        self._seconds, self._programs = 0.0, collections.Counter()
        return taken

    def _add(self, event: str, duration_secs: float, **details: str | int) -> None:
        if event == _COMPILED:
            self._seconds += duration_secs
            self._programs[str(details.get("fun_name"))] += 1


def main() -> int:
    """Sample the folder as often as asked for, and print the measurements."""
    answers, turns = sys.stdout, []
    # Libraries may print lines that are not JSON.
    with contextlib.redirect_stdout(sys.stderr):
        workdir = Path(_WORKDIR.value)
        sampler = Sampler.from_run(workdir, settings=_settings(workdir))
        loaded, compilations = peak_resident_bytes(), Compilations()
        if _WARM_UP.value:
            _sample(sampler, Path(_WARM_UP.value), Path(_OUT.value) / "warm_up")
        for turn in range(_TURNS.value):
            compilations.take()
            out = Path(_OUT.value) / str(turn)
            seconds = seconds_of(lambda out=out: _sample(sampler, Path(_VIDEOS.value), out))
            turns.append({"seconds": seconds, **compilations.take()})
    result = {"turns": turns, "loaded_bytes": loaded, "peak_bytes": peak_resident_bytes()}
    print(json.dumps(result), file=answers, flush=True)
    return 0


def peak_resident_bytes() -> int:
    """Return the highest resident memory of this process so far.

    `getrusage` would begin with that of the process that started this one.
    """
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return 1024 * int(match[1])


def _settings(workdir: Path):
    settings = read_config(workdir).sample
    if _STEPS.value is None:
        return settings
    return dataclasses.replace(settings, solver=dataclasses.replace(settings.solver, steps=_STEPS.value))


def _sample(sampler: Sampler, videos: Path, out: Path) -> None:
    clips = find_inputs(videos, choices=Choices(prompt=""))
    results = write_sounds(sampler, clips, out)
    if results.failed:
        raise FlowleyError(f"{len(results.failed)} of {len(clips)} videos failed: {results.failed[0]}")


if __name__ == "__main__":
    run_main(main)
