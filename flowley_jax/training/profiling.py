"""A trace of some steps of a run, for TensorBoard's profiler and Perfetto."""

import logging
from pathlib import Path
from typing import Any

import jax

log = logging.getLogger(__name__)


class ProfileWindow:
    """Traces the steps `first` … `first + count − 1` into `workdir/profile`; 0 traces none."""

    def __init__(self, workdir: Path, *, first: int, count: int):
        self._folder = workdir / "profile"
        self._first, self._last = first, first + count - 1
        self._running = False

    def __enter__(self) -> "ProfileWindow":
        return self

    def __exit__(self, *exc_info) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Called before every step, which are counted from 1."""
        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """Called after every step with what it makes."""
        if self._running and step >= self._last:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            log.info("profile of steps %d to %d in %s", self._first, self._last, self._folder)
