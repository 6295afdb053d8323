"""Differences between systems on the same clips, with their intervals."""

import contextlib
from collections.abc import Mapping

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.bootstrap import Interval, paired_difference
from flowley_jax.evaluation.feature_metrics import FeatureMetrics, ScoreOptions
from flowley_jax.evaluation.feature_sets import FeatureSet


def compare_systems(
    systems: Mapping[str, FeatureSet], reference: FeatureSet, options: ScoreOptions
) -> dict[str, dict[str, Interval]]:
    """Return each system's metrics minus those of the first one, by system and metric.

    Both systems are scored on the clips that both have, and resampled together (paired bootstrap). The
    reference is not resampled. A metric without a value for the same clips of both is left out.

    Args:
      systems: features of each system, by name.
      reference: features of the reference.
      options: how to compare features with the reference; without resamples, there is no difference.

    Raises:
      FlowleyError: a folder or file is missing or damaged.
    """
    first, *others = systems.items()
    if not options.resamples:
        return {}
    return {name: _differences(first[1], other, reference, options) for name, other in others}


def _differences(
    first: FeatureSet, second: FeatureSet, reference: FeatureSet, options: ScoreOptions
) -> dict[str, Interval]:
    sides = first.in_common_with(second), second.in_common_with(first)
    mine, theirs = (FeatureMetrics(side, reference, options).statistics for side in sides)
    differences = {}
    for metric, statistic in mine.items():
        other = theirs.get(metric)
        resamples = options.resamples if statistic.resamples is None else statistic.resamples
        if other is None or other.clips != statistic.clips or len(statistic.clips) < 2 or not resamples:
            continue
        with contextlib.suppress(FlowleyError):
            differences[metric] = paired_difference(
                statistic.of_evaluated, other.of_evaluated, len(statistic.clips), resamples=resamples
            )
    return differences
