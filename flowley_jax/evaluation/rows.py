"""The rows of a table of scores: systems, and what their scores are to be compared with."""

import dataclasses
from collections.abc import Callable, Mapping

from flowley_jax.evaluation.extractors import EXTRACTORS, SOUND
from flowley_jax.evaluation.feature_metrics import ScoreOptions
from flowley_jax.evaluation.feature_scores import FeatureScores, compare_features, score_features
from flowley_jax.evaluation.feature_sets import FeatureSet

# Rows that are not systems, and their explanations.
CODEC, REAL, OTHER_CLIP = "codec", "real", "other clip"
MEANINGS = {
    CODEC: "The real sound, encoded and decoded: the best that a model with this codec can do.",
    REAL: "The real sound. Distances are between two halves of the clips, and depend on that number.",
    OTHER_CLIP: "The first system's sound of another clip: the score of chance.",
}
# Features of a sound for which a row of real sounds makes sense without other features.
_OF_SOUND = {kind for name in SOUND for kind in EXTRACTORS[name].kinds} - {"level"}
_DISTANCES = ("FD-", "KAD-", "KID-")
# Metrics that compare no clip with its own reference.
_SETS = (*_DISTANCES, "ISC-", "LUFS", "clipped", "silence")


def score_rows(
    systems: Mapping[str, FeatureSet],
    reference: FeatureSet,
    options: ScoreOptions,
    *,
    codec: FeatureSet | None = None,
) -> dict[str, FeatureScores]:
    """Score systems, and the rows to compare them with, if their features exist.

    Args:
      systems: features of each system, by name.
      reference: features of the real sounds, of the pictures and of the captions.
      options: how to compare them.
      codec: features of real sounds that the codec has encoded and decoded.

    Raises:
      FlowleyError: a folder or file is missing or damaged, or no metric of a system has a value.
    """
    rows = {name: score_features(system, reference, options) for name, system in systems.items()}
    first = next(iter(systems.values()))
    if codec is not None:
        rows[CODEC] = compare_features(codec, reference, options)
    if _OF_SOUND.intersection(reference.kinds()):
        rows[REAL] = _real(reference, options)
    if any(not metric.startswith(_SETS) for metric in next(iter(rows.values())).metrics):
        others = compare_features(first, reference.of_other_clips(), options)
        rows[OTHER_CLIP] = _only(others, lambda metric: not metric.startswith(_SETS))
    return rows


def _real(reference: FeatureSet, options: ScoreOptions) -> FeatureScores:
    """Return the scores of real sounds: distances of halves, and all other metrics except KL, which is 0."""
    halves = dataclasses.replace(options, pairs=False)
    distances = compare_features(reference.half(0), reference.half(1), halves)
    itself = compare_features(reference, reference, options)
    return _joined(
        _only(distances, lambda metric: metric.startswith(_DISTANCES)),
        _only(itself, lambda metric: not metric.startswith((*_DISTANCES, "KL-"))),
    )


def _only(scores: FeatureScores, wanted: Callable[[str], bool]) -> FeatureScores:
    """Return the scores of some metrics."""
    names = ("metrics", "intervals", "clips", "bandwidths", "per_clip", "undefined")
    kept = {
        name: {metric: value for metric, value in getattr(scores, name).items() if wanted(metric)}
        for name in names
    }
    return dataclasses.replace(scores, **kept)


def _joined(first: FeatureScores, second: FeatureScores) -> FeatureScores:
    fields = [field.name for field in dataclasses.fields(FeatureScores)]
    return FeatureScores(**{name: {**getattr(first, name), **getattr(second, name)} for name in fields})
