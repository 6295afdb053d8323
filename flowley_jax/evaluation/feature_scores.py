"""Score folders of features with the metrics, the pairing and the names of av-benchmark, and with KAD."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.bootstrap import RESAMPLES, Interval, bootstrap_interval
from flowley_jax.evaluation.classes import inception_score, kl_divergences
from flowley_jax.evaluation.features import present_kinds, read_features
from flowley_jax.evaluation.frechet import frechet_distance
from flowley_jax.evaluation.kernel_distance import kernel_audio_distance
from flowley_jax.evaluation.similarity import cosine_similarities

# Lengths of file names that hold a YouTube id, and where it is.
_ID_PLACES = {30: slice(10, 28), 20: slice(0, 18), 21: slice(1, 19)}
# Features of generated sounds and of reference videos or texts whose similarity is a score.
_SIMILARITIES = {
    "IB-Score": ("imagebind_audio", "imagebind_video"),
    "LAION-CLAP-Score": ("clap_laion_audio", "clap_laion_text"),
    "MS-CLAP-Score": ("clap_ms_audio", "clap_ms_text"),
}
# Metrics that av-benchmark does not have.
EXTRA = ("KAD-PANN", "KAD-VGG", "KAD-PASST")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureScores:
    """Scores of generated clips.

    Attributes:
      metrics: values by av-benchmark's names, and KAD; a metric whose features are missing is left out.
      intervals: 95 % intervals of the same metrics; empty if none were asked for.
      clips: numbers of generated and reference clips, or of pairs, that a metric compares.
      bandwidths: bandwidth of the kernel of each KAD.
      without_reference: ids of generated clips without a reference, by kind of features.
      not_finite: ids of clips that are left out because their features are not finite numbers, by file.
    """

    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    intervals: dict[str, Interval] = dataclasses.field(default_factory=dict)
    clips: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    bandwidths: dict[str, float] = dataclasses.field(default_factory=dict)
    without_reference: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    not_finite: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def score_features(
    generated: Path,
    reference: Path,
    *,
    pairs: bool = True,
    bandwidth: str = "reference",
    resamples: int = 0,
) -> FeatureScores:
    """Score a folder of features against another one; see `features` for the files.

    FD-PANN, FD-VGG, their KAD and ISC-PANNS take all clips of a side. FD-PASST, its KAD and ISC-PASST take
    the clips with a reference, and all of them without `pairs`. The other metrics compare pairs of one id.

    Args:
      generated: folder of the generated clips' features.
      reference: folder of the reference clips' features.
      pairs: whether the clips of the two sides belong together by id; otherwise, metrics of pairs are left
        out.
      bandwidth: the side that decides the bandwidth of KAD.
      resamples: resampled sets of clips for the intervals of distances and Inception scores, which can take
        long; 0 for no interval at all. Intervals of means take 1000.

    Raises:
      FlowleyError: a folder or file is missing or damaged, the two have no features in common, no clip has a
        reference, or a metric is not defined for the clips, such as the Inception score of fewer than ten.
    """
    scorer = _Scorer(generated, reference, pairs=pairs, bandwidth=bandwidth, resamples=resamples)
    scorer.add_panns()
    scorer.add_vggish()
    scorer.add_passt()
    for metric, (mine, theirs) in _SIMILARITIES.items():
        scorer.add_similarity(metric, mine, theirs)
    if not scorer.scores.metrics:
        raise FlowleyError(
            f"{generated} has {', '.join(scorer.mine) or 'no features'}, {reference} has "
            f"{', '.join(scorer.theirs) or 'none'}: no metric compares these"
        )
    return scorer.scores


def clean_id(name: str) -> str:
    """Return the clip id within the name of a generated clip, as av-benchmark finds it: by length alone."""
    return name[_ID_PLACES[len(name)]] if len(name) in _ID_PLACES else name


class _Scorer:
    """Adds the metrics of two folders to scores."""

    def __init__(self, generated: Path, reference: Path, *, pairs: bool, bandwidth: str, resamples: int):
        self._folders = generated, reference
        self._pairs, self._bandwidth, self._resamples = pairs, bandwidth, resamples
        self.mine, self.theirs = present_kinds(generated), present_kinds(reference)
        self.scores = FeatureScores()

    def add_panns(self) -> None:
        if self._both("pann_2048"):
            self._add_distances("PANN", *self._all("pann_2048"))
        if "pann_logits" in self.mine:
            self._add_inception("ISC-PANNS", list(self._read(self._folders[0], "pann_logits").values()))
        if self._pairs and self._both("pann_logits"):
            # Of all metrics, only this one pairs the names as they are.
            pair = self._paired("pann_logits", cleaned=False)
            self._add_mean("KL-PANNS-softmax", kl_divergences(*map(np.stack, pair)))

    def add_vggish(self) -> None:
        if self._both("vggish"):
            self._add_distances("VGG", *self._all("vggish"))

    def add_passt(self) -> None:
        if self._both("passt_embed"):
            if self._pairs:
                self._add_distances("PASST", *self._paired("passt_embed"), pairs=True)
            else:
                self._add_distances("PASST", *self._all("passt_embed"))
        if not self._both("passt_logits"):
            return
        if not self._pairs:
            self._add_inception("ISC-PASST", self._all("passt_logits")[0])
            return
        evaluated, reference = self._paired("passt_logits")
        self._add_inception("ISC-PASST", evaluated)
        self._add_mean("KL-PASST-softmax", kl_divergences(np.stack(evaluated), np.stack(reference)))

    def add_similarity(self, metric: str, mine: str, theirs: str) -> None:
        if self._pairs and mine in self.mine and theirs in self.theirs:
            self._add_mean(metric, cosine_similarities(*map(np.stack, self._paired(mine, theirs))))

    def _both(self, kind: str) -> bool:
        return kind in self.mine and kind in self.theirs

    def _read(self, folder: Path, kind: str) -> dict[str, np.ndarray]:
        """Return the features of a kind by clip, without those that are not finite."""
        features = read_features(folder, kind)
        if bad := [clip for clip, array in features.items() if not np.isfinite(array).all()]:
            self.scores.not_finite[str(folder / kind)] = bad
        return {clip: array for clip, array in features.items() if clip not in bad}

    def _all(self, kind: str) -> list[list[np.ndarray]]:
        return [list(self._read(folder, kind).values()) for folder in self._folders]

    def _paired(self, kind: str, other: str | None = None, *, cleaned: bool = True) -> list[list[np.ndarray]]:
        """Return the features of the clips with a reference, in the order of the generated ones."""
        evaluated = self._read(self._folders[0], kind)
        reference = self._read(self._folders[1], other or kind)
        names = {name: clean_id(name) if cleaned else name for name in evaluated}
        pairs = [(name, clip) for name, clip in names.items() if clip in reference]
        self.scores.without_reference[kind] = [name for name, clip in names.items() if clip not in reference]
        if not pairs:
            raise FlowleyError(
                f"{self._folders[0]}: none of the clips with {kind} has a reference in {self._folders[1]}; "
                f"the ids are like {next(iter(evaluated))!r} and {next(iter(reference))!r}"
            )
        return [[evaluated[name] for name, _ in pairs], [reference[clip] for _, clip in pairs]]

    def _add_mean(self, metric: str, values: np.ndarray) -> None:
        resamples = RESAMPLES if self._resamples else 0
        self._add(metric, lambda rows: values[rows].mean(), [len(values)], resamples)

    def _add_inception(self, metric: str, rows_of_logits: Sequence[np.ndarray]) -> None:
        logits = np.stack(rows_of_logits)
        score = inception_score(logits)
        self.scores.metrics[f"{metric}-std"] = score.std
        # Resampled clips are in a random order, as those of the parts are.
        self._add(
            f"{metric}-mean",
            lambda rows: inception_score(logits[rows]).mean,
            [len(logits)],
            self._resamples,
        )

    def _add_distances(
        self,
        network: str,
        evaluated: Sequence[np.ndarray],
        reference: Sequence[np.ndarray],
        *,
        pairs: bool = False,
    ) -> None:
        """Add the Fréchet and the kernel distance of the features of clips, each (D,) or (windows, D)."""

        def chosen(clips: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
            return np.concatenate([np.atleast_2d(clips[row]) for row in rows])

        def frechet(rows: np.ndarray, others: np.ndarray) -> float:
            return frechet_distance(chosen(evaluated, rows), chosen(reference, others))

        def kernel(rows: np.ndarray, others: np.ndarray) -> float:
            return kernel_audio_distance(
                chosen(evaluated, rows), chosen(reference, others), bandwidth=self._bandwidth
            ).score

        sides = np.arange(len(evaluated)), np.arange(len(reference))
        whole = [chosen(clips, rows) for clips, rows in zip((evaluated, reference), sides, strict=True)]
        self.scores.bandwidths[f"KAD-{network}"] = kernel_audio_distance(
            *whole, bandwidth=self._bandwidth
        ).bandwidth
        for metric, statistic in {f"FD-{network}": frechet, f"KAD-{network}": kernel}.items():
            if pairs:
                self._add(metric, lambda rows, s=statistic: s(rows, rows), [len(evaluated)], self._resamples)
            else:
                self._add(metric, statistic, [len(evaluated), len(reference)], self._resamples)

    def _add(self, metric: str, statistic: Callable[..., float], clips: list[int], resamples: int) -> None:
        self.scores.clips[metric] = clips
        if resamples:
            interval = bootstrap_interval(statistic, *clips, resamples=resamples)
            self.scores.intervals[metric] = interval
            self.scores.metrics[metric] = interval.estimate
        else:
            self.scores.metrics[metric] = float(statistic(*map(np.arange, clips)))
