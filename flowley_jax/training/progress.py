"""Progress of a long run on standard error: where it is, how fast, how long to go."""

import sys
import time
from collections.abc import Mapping


class Progress:
    """Prints one line per report; on a terminal the lines replace each other."""

    def __init__(self, first_step: int, last_step: int):
        self._first, self._last = first_step, last_step
        self._started = time.monotonic()

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Reports losses and speed after `step`, with the time left at the mean pace so far."""
        elapsed = time.monotonic() - self._started
        left = elapsed / max(1, step - self._first) * (self._last - step)
        self._print(
            f"step {step}/{self._last}  loss {values.get('train/loss', float('nan')):.4f}  "
            f"{values['examples_per_second']:.1f} examples/s  left {clock(left)}",
            replace=sys.stderr.isatty() and step < self._last,
        )

    def note(self, text: str) -> None:
        """Reports something that stays on the screen."""
        self._print(text, replace=False)

    @staticmethod
    def _print(text: str, *, replace: bool) -> None:
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(f"{clear}{text}", end="" if replace else "\n", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
