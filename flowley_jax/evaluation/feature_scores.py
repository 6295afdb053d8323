"""Score features with the metrics, the pairing and the names of av-benchmark, and with further metrics."""

import dataclasses
import math

import numpy as np

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.bootstrap import Interval, bootstrap_interval
from flowley_jax.evaluation.feature_metrics import FeatureMetrics, ScoreOptions, Statistic
from flowley_jax.evaluation.feature_sets import FeatureSet

# Metrics that av-benchmark has, too.
AV_BENCHMARK = (
    *("FD-VGG", "FD-PANN", "FD-PASST", "KL-PANNS-softmax", "KL-PASST-softmax"),
    *("ISC-PANNS-mean", "ISC-PANNS-std", "ISC-PASST-mean", "ISC-PASST-std"),
    *("IB-Score", "DeSync", "LAION-CLAP-Score", "MS-CLAP-Score"),
)
# Possible values of metrics, by the start of their names; intervals end there.
_SHARE, _NO_BOUNDS = (0.0, 1.0), (-math.inf, math.inf)
_BOUNDS = {
    **dict.fromkeys(("FD-", "KL-", "DeSync", "onset-error"), (0.0, math.inf)),
    "ISC-": (1.0, math.inf),
    **dict.fromkeys(("IB-", "LAION-", "MS-"), (-1.0, 1.0)),
    **dict.fromkeys(("AV-Align", "onset-", "Greatest-Hits", "clipped", "silence"), _SHARE),
    **dict.fromkeys(("material-", "motion-", "class-"), _SHARE),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureScores:
    """Scores of generated clips.

    Attributes:
      metrics: values by name; a metric whose features are missing is left out.
      intervals: 95 % intervals of the same metrics; empty if none were asked for.
      clips: numbers of generated and reference clips, or of pairs, that a metric compares.
      bandwidths: bandwidth of the kernel of each KAD.
      per_clip: values of each clip, by metric and clip id, of metrics that are means over clips.
      without_reference: ids of generated clips without a reference, by kind of features.
      not_finite: ids of clips that are left out because their features are not finite numbers, by folder and
        kind.
      without_value: ids of clips for which a metric is not defined, such as AV-Align of a clip that has
        neither motion nor onsets.
      undefined: reasons why metrics have no value although their features are there, by metric.
    """

    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    intervals: dict[str, Interval] = dataclasses.field(default_factory=dict)
    clips: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    bandwidths: dict[str, float] = dataclasses.field(default_factory=dict)
    per_clip: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    without_reference: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    not_finite: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    without_value: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    undefined: dict[str, str] = dataclasses.field(default_factory=dict)


def score_features(
    generated: FeatureSet, reference: FeatureSet, options: ScoreOptions | None = None
) -> FeatureScores:
    """Score features against those of the reference.

    FD, KAD, KID and ISC take all clips of a side. With `pairs`, those of PaSST take only clips with a
    reference. LUFS, clipped and silence take the generated clips. All others compare clips of equal id.

    Args:
      generated: features of the generated clips.
      reference: features of the reference clips.
      options: how to compare them; None for the usual way.

    Raises:
      FlowleyError: a folder or file is missing or damaged, or no metric has a value: the two have no features
        in common, no clip has a reference, or there are too few clips.
    """
    scores = compare_features(generated, reference, options)
    if not scores.metrics:
        for reason in scores.undefined.values():
            raise FlowleyError(reason)
        mine, theirs = (", ".join(side.kinds()) or "none" for side in (generated, reference))
        raise FlowleyError(
            f"{generated.folder} has {mine}, {reference.folder} has {theirs}: no metric compares these"
        )
    return scores


def compare_features(
    generated: FeatureSet, reference: FeatureSet, options: ScoreOptions | None = None
) -> FeatureScores:
    """Score features as `score_features` does; if no metric has a value, return scores without any."""
    options = options or ScoreOptions()
    metrics = FeatureMetrics(generated, reference, options)
    scores = FeatureScores(
        without_reference=metrics.without_reference,
        not_finite=metrics.not_finite,
        without_value=metrics.without_value,
        undefined=metrics.undefined,
    )
    for metric, statistic in metrics.statistics.items():
        try:
            # What overflows is found by its result.
            with np.errstate(over="ignore", invalid="ignore"):
                _add(scores, metric, statistic, options.resamples)
        except (FlowleyError, np.linalg.LinAlgError) as error:
            # Such as the Inception score of fewer than ten clips.
            scores.undefined[metric] = str(error)
    return scores


def _add(scores: FeatureScores, metric: str, statistic: Statistic, resamples: int) -> None:
    """Add a metric with its interval, the clips that it compares, and their values."""
    if resamples and statistic.resamples is not None:
        resamples = statistic.resamples
    scores.clips[metric] = statistic.sizes
    if resamples and min(statistic.sizes) > 1:
        interval = bootstrap_interval(statistic.function, *statistic.sizes, resamples=resamples)
        least, most = next((ends for start, ends in _BOUNDS.items() if metric.startswith(start)), _NO_BOUNDS)
        scores.intervals[metric] = dataclasses.replace(
            interval, low=max(least, interval.low), high=min(most, interval.high)
        )
        scores.metrics[metric] = interval.estimate
    else:
        scores.metrics[metric] = float(statistic.function(*map(np.arange, statistic.sizes)))
    if not np.isfinite(scores.metrics[metric]):
        value = scores.metrics.pop(metric)
        scores.intervals.pop(metric, None)
        raise FlowleyError(f"is {value}: the features are too large or too small")
    if statistic.values is not None:
        scores.per_clip[metric] = dict(zip(statistic.clips, statistic.values.tolist(), strict=True))
    if statistic.bandwidth is not None:
        scores.bandwidths[metric] = statistic.bandwidth()
