"""The time of a run: what it is spent on over all starts, how long steps take, and traces of a few steps."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowley_jax.common import distributed
from flowley_jax.common.files import write_text

log = logging.getLogger(__name__)
GOODPUT_FILE = "goodput.json"
# "repeated": steps that a crash had lost; "reports": log lines, validation and previews; "down": time between
# two starts.
KINDS = ("start", "compile", "data", "step", "repeated", "reports", "checkpoint", "down")


class Timing:
    """Seconds by kind, summed in `workdir/goodput.json`, and the durations of the steps since the last log.

    Every moment since the first start is charged to one kind. Time in which the devices compute is "step",
    even if the host reads data meanwhile. Only the first process's clock counts, and it writes the file.

    Args:
      workdir: folder of the run.
      checkpoint_minutes: a checkpoint is due when the last one is this old.
    """

    def __init__(self, workdir: Path, *, checkpoint_minutes: float = np.inf):
        self._path = workdir / GOODPUT_FILE
        self._seconds, self._furthest_step, written = _read(self._path)
        self._charged_until = time.time()
        if written is not None:
            self._seconds["down"] += max(0.0, self._charged_until - written)
        self._checkpoint_seconds = 60.0 * checkpoint_minutes
        self._checkpoint_stored = time.monotonic()
        self._step_durations: list[float] = []
        self._data_wait = 0.0
        self._step_started = time.perf_counter()

    def charge(self, kind: str) -> float:
        """Charge the seconds since the last charge to `kind`, and return them."""
        now = time.time()
        seconds = max(0.0, now - self._charged_until)
        self._seconds[kind] += seconds
        self._charged_until = now
        return seconds

    def charge_step(self, step: int) -> None:
        """Charge the seconds since the last charge to training: "step", or "repeated" after a crash."""
        self.charge("step" if step > self._furthest_step else "repeated")

    def batch_ready(self, step: int, *, devices_idle: bool) -> None:
        """Charge the wait for the batch of `step` to "data" if the devices sat idle, else to the step."""
        if devices_idle:
            self._data_wait += self.charge("data")
        else:
            self.charge_step(step)

    def compiled(self) -> float:
        """Charge the seconds since the last charge to compilation, which no step time includes."""
        seconds = self.charge("compile")
        self._data_wait = 0.0
        self._step_started = time.perf_counter()
        return seconds

    def step_finished(self) -> None:
        """Record the duration of the step that just finished."""
        now = time.perf_counter()
        self._step_durations.append(now - self._step_started)
        self._step_started = now

    @contextlib.contextmanager
    def interval(self, kind: str, *, step: int) -> Iterator[None]:
        """Charge the block to `kind`, and leave it out of the step times."""
        self.charge_step(step)
        yield
        self.charge(kind)
        self._step_started = time.perf_counter()

    def step_times(self) -> dict[str, float]:
        """Return the mean and percentiles of the step time since the last call, and the wait for data.

        Returns:
          Seconds: `step_time`, `step_time_p50`, `step_time_p90`, `step_time_p99`, and `data_wait` per step.
        """
        durations = np.asarray(self._step_durations)
        times = {"step_time": float(durations.mean())}
        for percentile in (50, 90, 99):
            times[f"step_time_p{percentile}"] = float(np.percentile(durations, percentile))
        times["data_wait"] = self._data_wait / len(durations)
        self._step_durations.clear()
        self._data_wait = 0.0
        return times

    def checkpoint_is_old(self) -> bool:
        """Return whether the last checkpoint is too old. Collective: every process must call this."""
        age = time.monotonic() - self._checkpoint_stored
        return bool(distributed.broadcast_from_first(age >= self._checkpoint_seconds))

    def checkpoint_stored(self) -> None:
        """Restart the age of the last checkpoint."""
        self._checkpoint_stored = time.monotonic()

    @property
    def goodput(self) -> Mapping[str, float]:
        """Share of the run's uptime that went into new steps, and the seconds of each kind."""
        up = sum(self._seconds.values()) - self._seconds["down"]
        seconds = {f"seconds/{kind}": value for kind, value in self._seconds.items()}
        return {"goodput": self._seconds["step"] / up if up else 0.0, **seconds}

    def write(self, step: int) -> None:
        """Store the sums, so that the next start continues them; `step` steps are finished."""
        if distributed.is_first():
            sums = {
                "seconds": self._seconds,
                "furthest_step": max(step, self._furthest_step),
                "written": time.time(),
            }
            write_text(self._path, json.dumps(sums, indent=2) + "\n")


class ProfileWindow:
    """Trace of `count` steps, starting at `first` (0: none), in `workdir/profile`; TensorBoard shows it."""

    def __init__(self, workdir: Path, *, first: int, count: int):
        self._folder = workdir / "profile"
        self._first, self._last = first, first + count - 1
        self._running = False

    def __enter__(self) -> "ProfileWindow":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop()

    def step(self, step: int) -> contextlib.AbstractContextManager[Any]:
        """Return a context that marks a step in the trace. Steps count from 1."""
        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, results: Any) -> None:
        """End the trace after its last step, once the step's results are computed."""
        if self._running and step >= self._last:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            log.info("profile of steps %d to %d: %s", self._first, self._last, self._folder)


def _read(path: Path) -> tuple[dict[str, float], int, float | None]:
    """Return the seconds by kind, the furthest step, and the time of writing (None if there is no file)."""
    try:
        stored = json.loads(path.read_text())
        seconds = {kind: float(stored["seconds"][kind]) for kind in KINDS}
        return seconds, int(stored["furthest_step"]), float(stored["written"])
    except (OSError, ValueError, KeyError, TypeError):
        # The first start, or a damaged file: the run matters more than its accounts.
        return dict.fromkeys(KINDS, 0.0), 0, None
