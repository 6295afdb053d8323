"""Bootstrap confidence intervals (Efron and Tibshirani 1993, chapters 13 and 16)."""

import dataclasses
from collections.abc import Callable

import numpy as np

from flowley_jax.errors import FlowleyError

RESAMPLES = 1000
# Standard deviations on each side of a 95 % interval of a normal distribution.
_NORMAL_95 = 1.959964


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    estimate: float
    low: float
    high: float


def bootstrap_interval(
    statistic: Callable[..., float], *clips: int, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return a statistic over all clips with its 95 % bootstrap interval.

    The interval is the estimate ± 1.96 standard deviations of the statistic over resampled sets of clips.
    Percentiles would be wrong for distances, which grow when clips occur several times.

    Args:
      statistic: function of the rows (clips,) of the clips to take, which may repeat, for each set.
      clips: number of clips of each set; sets are resampled independently.
      resamples: number of resampled sets.
      seed: seed of the choice of the clips.

    Raises:
      FlowleyError: there are fewer than two clips, or two sets.
    """
    if min(clips) < 2 or resamples < 2:
        raise FlowleyError(f"clips={min(clips)} and resamples={resamples} must be at least 2 for an interval")
    rng = np.random.default_rng(seed)
    estimate = float(statistic(*map(np.arange, clips)))
    values = [statistic(*(rng.integers(n, size=n) for n in clips)) for _ in range(resamples)]
    reach = _NORMAL_95 * float(np.std(values, ddof=1))
    return Interval(estimate=estimate, low=estimate - reach, high=estimate + reach)


def paired_difference(
    first: Callable[[np.ndarray], float],
    second: Callable[[np.ndarray], float],
    clips: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the second system's statistic minus the first one's, with its interval over the same clips.

    Args:
      first, second: the statistic of each system, as for `bootstrap_interval`.
      clips: number of clips that both systems have.
      resamples: number of resampled sets.
      seed: seed of the choice of the clips.

    Raises:
      FlowleyError: as for `bootstrap_interval`.
    """
    return bootstrap_interval(lambda rows: second(rows) - first(rows), clips, resamples=resamples, seed=seed)
