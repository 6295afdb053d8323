"""The time of the training loop: what it is spent on, and when a checkpoint is due by it."""

import contextlib
import time
from collections.abc import Iterator

from flowley_jax.training import processes
from flowley_jax.training.goodput import Goodput
from flowley_jax.training.window import Window


class Clock:
    """Tells `Goodput` and `Window` what the loop has been doing."""

    def __init__(self, goodput: Goodput, window: Window, *, minutes: float):
        self._goodput, self._window = goodput, window
        self._most = 60.0 * minutes
        self._stored = time.monotonic()

    def batch_is_there(self, step: int) -> float:
        """Seconds in which the devices had nothing to do for want of the batch of this step."""
        if self._window.devices_idle:
            return self._goodput.spent("data")
        self.step_is_done(step)
        return 0.0

    def step_is_done(self, step: int) -> None:
        """Counts what has passed as this step."""
        self._goodput.spent(self._goodput.kind_of_step(step))

    def compiled(self) -> float:
        """Counts what has passed as compilation, which no step time contains; returns its seconds."""
        seconds = self._goodput.spent("compile")
        self._window.restart_clock()
        return seconds

    @contextlib.contextmanager
    def aside(self, step: int, kind: str) -> Iterator[None]:
        """Around what is no training."""
        self._window.finish_step()
        self.step_is_done(step)
        yield
        self._goodput.spent(kind)
        self._window.restart_clock()

    def checkpoint_is_old(self) -> bool:
        """Whether the last one was stored too long ago; all processes have to ask."""
        return processes.first_says(time.monotonic() - self._stored >= self._most)

    def stored(self) -> None:
        """A checkpoint has just been stored."""
        self._stored = time.monotonic()
