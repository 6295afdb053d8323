"""Stretches of the time of a flow: in each of them, one form of guidance applies."""

import itertools
from typing import NamedTuple

from flowley_jax.flow.guidance import Guidance
from flowley_jax.flow.solver import ADAPTIVE, SolverConfig, time_grid


class Stretch(NamedTuple):
    """Consecutive solver steps whose velocities are formed alike.

    Attributes:
      times: times between which a fixed-step solver makes its steps; start and end for an adaptive one.
      guidance: form of the guidance of every step.
    """

    times: tuple[float, ...]
    guidance: Guidance


def stretches(solver: SolverConfig, guidance: Guidance) -> list[Stretch]:
    """Return the stretches of a flow, from its first step with a velocity that is not zero.

    A step of a fixed-step solver belongs to where it begins. The steps of an adaptive solver end where the
    form of the velocity changes.
    """
    times = _times(solver, guidance)
    forms = [guidance.at(start) for start in times[:-1]]
    found, first = [], 0
    for form, steps in itertools.groupby(forms):
        last = first + len(list(steps))
        if form:
            found.append(Stretch(tuple(times[first : last + 1]), form))
        first = last
    return found


def network_evaluations(solver: SolverConfig, guidance: Guidance) -> int:
    """Return the number of network evaluations per window; for an adaptive solver, the least possible one."""
    if solver.name in ADAPTIVE:
        return sum(
            solver.least_evaluations * stretch.guidance.branches for stretch in stretches(solver, guidance)
        )
    per_step = solver.evaluations // solver.steps
    return sum(
        per_step * (len(stretch.times) - 1) * stretch.guidance.branches
        for stretch in stretches(solver, guidance)
    )


def _times(solver: SolverConfig, guidance: Guidance) -> list[float]:
    """Return all times at which the form of the velocity may change."""
    if solver.name not in ADAPTIVE:
        return time_grid(solver).tolist()
    changes = (guidance.start, guidance.end, guidance.zero_until)
    return sorted({0.0, *(time for time in changes if 0.0 < time < 1.0), 1.0})
