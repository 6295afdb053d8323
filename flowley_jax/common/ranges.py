"""Ranges of numbers, declared where a configuration value or a flag is declared."""

import dataclasses
import math
from typing import Annotated

# JAX computes with int32 and float32 where nothing else is asked for.
_INT_LIMIT = 2**31 - 1
_FLOAT_LIMIT = 3.4e38


@dataclasses.dataclass(frozen=True)
class Range:
    """The finite numbers that a value may have; without bounds, all that fit into int32 or float32.

    Attributes:
      least: lowest number.
      most: highest number.
      above: number that is too low itself.
      below: number that is too high itself.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __str__(self) -> str:
        """Return the range as words that fit after "must be", such as "at least 1"."""
        if self.above is not None and self.below is not None:
            return f"between {self.above:.10g} and {self.below:.10g}"
        bounds = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        words = [f"{name} {bound:.10g}" for name, bound in bounds.items() if bound is not None]
        return " and ".join(words)

    def fault(self, value: float) -> str:
        """Return what a number fails, such as "must be at least 1"; empty if it is in the range."""
        if not math.isfinite(value):
            return "must be a finite number"
        inside = (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )
        if not inside:
            return f"must be {self}"
        limit = _INT_LIMIT if isinstance(value, int) else _FLOAT_LIMIT
        if value > limit and self.most is None and self.below is None:
            return f"must be at most {limit}"
        return f"must be at least {-limit}" if value < -limit and self.least is None else ""


Count = Annotated[int, Range(least=1)]
CountOrZero = Annotated[int, Range(least=0)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
SHARES = Range(least=0, most=1)
Share = Annotated[float, SHARES]

# Lengths of averages, relative to the run: at 1/√12 the power function is the plain average of the whole run,
# the longest possible.
SIGMA_RELS = Range(above=0, below=0.288)
# Scales of classifier-free guidance.
GUIDANCES = Range(least=0, most=100)
# Times of a flow, from noise to sound, before its end.
FLOW_TIMES = Range(least=0, below=1)
# Shifts of the time grid of a solver.
SHIFTS = Range(least=0.01, most=100)
# Shares of a window that overlaps with the next one.
OVERLAPS = Range(least=0, most=0.9)
# Integrated loudness of a sound in LUFS; below, the meter hears silence.
LOUDNESSES = Range(least=-70, most=0)
# Keys of JAX and NumPy have 32 bits of a seed.
SEEDS = Range(least=0, most=2**32 - 1)
# Widths of features, and tokens of a caption.
SIZES = Range(least=1, most=2**20)
# Lengths of clips, windows and sounds from text. A video may be longer.
SECONDS = Range(least=0.01, most=3600)
# Instants of a video, in seconds from its start; no film lasts longer than a day.
TIMES = Range(least=0, most=86_400)
# Waiting times of the operating system overflow long after this day.
TIME_LIMITS = Range(least=0.1, most=86_400)
PROCESSES = Range(least=1, most=1024)
