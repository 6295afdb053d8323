"""Differences between systems on the same clips, with their intervals."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.bootstrap import Interval, paired_difference
from flowley_jax.evaluation.feature_metrics import FeatureMetrics, ScoreOptions
from flowley_jax.evaluation.feature_sets import FeatureSet, common_clips


def compare_systems(
    systems: Mapping[str, Path], reference: Path, options: ScoreOptions
) -> dict[str, dict[str, Interval]]:
    """Return each system's metrics minus those of the first one, by system and metric.

    Both systems are scored on the clips that both have, and resampled together (paired bootstrap). The
    reference is not resampled. A metric without a value for the same clips of both is left out.

    Args:
      systems: folder of the features of each system, by name.
      reference: folder of the features of the reference.
      options: how to compare features with the reference; without resamples, there is no difference.

    Raises:
      FlowleyError: a folder or file is missing or damaged.
    """
    first, *others = systems.items()
    if not options.resamples:
        return {}
    return {name: _differences(first[1], folder, reference, options) for name, folder in others}


def _differences(first: Path, second: Path, reference: Path, options: ScoreOptions) -> dict[str, Interval]:
    mine, theirs = (
        FeatureMetrics(side, FeatureSet(reference), options).statistics
        for side in common_clips(first, second)
    )
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
