"""A worker of `benchmarks.evaluate`: extract features of a folder of sounds, and measure its memory.

It writes one line of JSON: "peak_bytes" is the highest resident memory of the process.
"""

import contextlib
import itertools
import json
import re
import sys
from pathlib import Path

from absl import flags

from benchmarks.common import seconds_of
from benchmarks.evaluate_tasks import random_evaluator
from flowley_jax.cli import run_main
from flowley_jax.common.number_flags import define_float
from flowley_jax.common.ranges import SECONDS
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.extraction import Evaluators, extract
from flowley_jax.evaluation.preparation import Preparation

EXTRACTORS = ("panns", "tagger", "level")

_SOUNDS = flags.DEFINE_string("sounds", None, "Folder of .wav files.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder for the features.", required=True)
_SECONDS = define_float("seconds", 8.0, "Length of the sounds.", SECONDS)


def main() -> int:
    """Extract the features in this process, and print the measurements."""
    answers = sys.stdout
    # Libraries may print lines that are not JSON.
    with contextlib.redirect_stdout(sys.stderr):
        clips = {path.stem: str(path) for path in sorted(Path(_SOUNDS.value).glob("*.wav"))}
        seconds = seconds_of(lambda: _extract(clips))
    row = {"clips": len(clips), "seconds": seconds, "peak_bytes": _peak_resident_bytes()}
    print(json.dumps(row), file=answers, flush=True)
    return 0


def _extract(clips: dict[str, str]) -> None:
    evaluators = Evaluators({name: random_evaluator(name, "float32") for name in ("panns", "tagger")})
    reader = Preparation(EXTRACTORS, _SECONDS.value)
    failed = extract(
        clips,
        EXTRACTORS,
        evaluators,
        Path(_OUT.value),
        seconds=_SECONDS.value,
        read=lambda calls: itertools.starmap(reader, calls),
    )
    if failed:
        raise FlowleyError(f"{len(failed)} of {len(clips)} sounds failed: {failed[0]}")


def _peak_resident_bytes() -> int:
    """Return the highest resident memory of this process so far.

    `getrusage` would begin with that of the process that started this one.
    """
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return 1024 * int(match[1])


if __name__ == "__main__":
    run_main(main)
