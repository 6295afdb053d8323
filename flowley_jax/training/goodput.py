"""Where the time of a run goes, over all of its starts."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from flowley_jax.training import processes
from flowley_jax.whole_files import write_text

GOODPUT_FILE = "goodput.json"
# "repeated" are steps whose result a crash had lost; "reports" are log lines, validation and previews; "down"
# is between two starts.
KINDS = ("start", "compile", "data", "step", "repeated", "reports", "checkpoint", "down")


class Goodput:
    """Seconds by kind, added up in `workdir/goodput.json`; one process of many counts and writes.

    Every moment since the first start belongs to one kind. Time in which the devices compute is "step", also
    when the host reads data meanwhile.
    """

    def __init__(self, workdir: Path):
        self._path = workdir / GOODPUT_FILE
        stored = _read(self._path)
        self._seconds = dict.fromkeys(KINDS, 0.0) | stored.get("seconds", {})
        self._furthest = int(stored.get("furthest_step", 0))
        self._since = time.time()
        if "written" in stored:
            self._seconds["down"] += max(0.0, self._since - stored["written"])

    def spent(self, kind: str) -> float:
        """Counts the seconds since the last call, and returns them."""
        now = time.time()
        seconds = max(0.0, now - self._since)
        self._seconds[kind] += seconds
        self._since = now
        return seconds

    def kind_of_step(self, step: int) -> str:
        """Whether this step is done for the first time."""
        return "step" if step > self._furthest else "repeated"

    def write(self, step: int) -> None:
        """Stores the sums, so that they outlive this process; `step` steps are finished."""
        if processes.is_first():
            furthest = max(step, self._furthest)
            figures = {"seconds": self._seconds, "furthest_step": furthest, "written": time.time()}
            write_text(self._path, json.dumps(figures, indent=2) + "\n")

    @property
    def figures(self) -> Mapping[str, float]:
        """The share of steps in the time that the run had its machines, and the seconds of each kind."""
        up = sum(self._seconds.values()) - self._seconds["down"]
        seconds = {f"seconds/{kind}": value for kind, value in self._seconds.items()}
        return {"goodput": self._seconds["step"] / up if up else 0.0, **seconds}


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        # No start before this one, or a disk that lost it: the run matters more than its accounts.
        return {}
