"""Score features with the metrics, the pairing and the names of av-benchmark, and with further metrics."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.av_align import av_align
from flowley_jax.evaluation.bootstrap import RESAMPLES, Interval, bootstrap_interval
from flowley_jax.evaluation.classes import inception_score, kl_divergences
from flowley_jax.evaluation.desync import offset_magnitudes
from flowley_jax.evaluation.feature_sets import FeatureSet
from flowley_jax.evaluation.frechet import frechet_distance
from flowley_jax.evaluation.kernel_distance import kernel_audio_distance
from flowley_jax.evaluation.labels import accuracy
from flowley_jax.evaluation.onset_protocol import Onsets, compare_clip
from flowley_jax.evaluation.onsets import TOLERANCE, OnsetScore, aggregate, match_onsets
from flowley_jax.evaluation.similarity import cosine_similarities
from flowley_jax.interop.torch_files import StoredTensor
from flowley_jax.networks.synchformer_config import HEAD_SEGMENTS

# Metrics that av-benchmark has, too.
AV_BENCHMARK = (
    *("FD-VGG", "FD-PANN", "FD-PASST", "KL-PANNS-softmax", "KL-PASST-softmax"),
    *("ISC-PANNS-mean", "ISC-PANNS-std", "ISC-PASST-mean", "ISC-PASST-std"),
    *("IB-Score", "DeSync", "LAION-CLAP-Score", "MS-CLAP-Score"),
)
# Lengths of file names that hold a YouTube id, and where it is.
_ID_PLACES = {30: slice(10, 28), 20: slice(0, 18), 21: slice(1, 19)}
# Features of generated sounds and of reference videos or texts whose similarity is a score.
_SIMILARITIES = {
    "IB-Score": ("imagebind_audio", "imagebind_video"),
    "LAION-CLAP-Score": ("clap_laion_audio", "clap_laion_text"),
    "MS-CLAP-Score": ("clap_ms_audio", "clap_ms_text"),
}
_ONSET_FIGURES = {
    "onset-F1": "f1",
    "onset-precision": "precision",
    "onset-recall": "recall",
    "onset-error-ms": "median_abs_error_ms",
}
# Pairs of clips whose offsets are computed at once.
_PAIRS = 16

# Function from Synchformer's features of pictures and of sounds, (B, 14, …), to logits of offsets, (B, 21).
OffsetLogits = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How features are compared.

    Attributes:
      pairs: whether the clips of the two sides belong together by id; otherwise, metrics of pairs are left
        out.
      bandwidth: the side that decides the bandwidth of KAD: "reference" or "evaluated".
      resamples: resampled sets of clips for the intervals of distances and Inception scores, which can take
        long; 0 for no interval at all. Intervals of means take 1000.
      offset_logits: Synchformer's head, without which there is no DeSync.
      classes: names of the embedded tagger's classes, without which its accuracy is not measured.
      tolerance: largest distance of an onset from its event, in seconds.
    """

    pairs: bool = True
    bandwidth: str = "reference"
    resamples: int = 0
    offset_logits: OffsetLogits | None = None
    classes: tuple[str, ...] = ()
    tolerance: float = TOLERANCE


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
      not_finite: ids of clips that are left out because their features are not finite numbers, by file.
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

    FD-PANN, FD-VGG, their KAD and ISC-PANNS take all clips of a side. FD-PASST, its KAD and ISC-PASST take
    the clips with a reference, and all of them without `pairs`. The other metrics compare pairs of one id.

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
    scorer = _Scorer(generated, reference, options or ScoreOptions())
    pairs = scorer.options.pairs
    steps = {
        "PANN": lambda: scorer.add_distances("PANN", "pann_2048"),
        "PANNS": lambda: scorer.add_classes("PANNS", "pann_logits"),
        "VGG": lambda: scorer.add_distances("VGG", "vggish"),
        "FD-PASST": lambda: scorer.add_distances("PASST", "passt_embed", pairs=pairs),
        "KL-PASST-softmax": lambda: scorer.add_classes("PASST", "passt_logits", pairs=pairs),
        "FD-TAGGER": lambda: scorer.add_distances("TAGGER", "tagger_embed"),
        "KL-TAGGER-softmax": lambda: scorer.add_classes("TAGGER", "tagger_logits"),
        "class-accuracy": scorer.add_accuracy,
        **{
            metric: lambda metric=metric, kinds=kinds: scorer.add_similarity(metric, *kinds)
            for metric, kinds in _SIMILARITIES.items()
        },
        "DeSync": scorer.add_desync,
        "AV-Align": scorer.add_av_align,
        "onset-F1": scorer.add_onsets,
        "Greatest-Hits-AP": scorer.add_onset_protocol,
    }
    for metric, add in steps.items():
        try:
            add()
        except _NoPairsError as error:
            scorer.scores.undefined[metric] = str(error)
    return scorer.scores


def clean_id(name: str) -> str:
    """Return the clip id within the name of a generated clip, as av-benchmark finds it: by length alone."""
    return name[_ID_PLACES[len(name)]] if len(name) in _ID_PLACES else name


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Features of the clips with a reference, in the order of the generated ones."""

    clips: list[str]
    evaluated: list[np.ndarray]
    reference: list[np.ndarray]


class _Scorer:
    """Adds the metrics of two sides to scores."""

    def __init__(self, generated: FeatureSet, reference: FeatureSet, options: ScoreOptions):
        self._sides, self.options = (generated, reference), options
        self.mine, self.theirs = generated.kinds(), reference.kinds()
        self.scores = FeatureScores()

    def add_distances(self, network: str, kind: str, *, pairs: bool = False) -> None:
        """Add the Fréchet and the kernel distance of features of clips, each (D,) or (windows, D)."""
        if not self._both(kind):
            return
        if pairs:
            paired = self._paired(kind)
            evaluated, reference = paired.evaluated, paired.reference
        else:
            evaluated, reference = (list(self._read(side, kind).values()) for side in self._sides)

        def chosen(clips: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
            return np.concatenate([np.atleast_2d(clips[row]) for row in rows])

        def frechet(rows: np.ndarray, others: np.ndarray) -> float:
            return frechet_distance(chosen(evaluated, rows), chosen(reference, others))

        def kernel(rows: np.ndarray, others: np.ndarray) -> float:
            return kernel_audio_distance(
                chosen(evaluated, rows), chosen(reference, others), bandwidth=self.options.bandwidth
            ).score

        for metric, statistic in {f"FD-{network}": frechet, f"KAD-{network}": kernel}.items():
            if pairs:
                self._add(metric, lambda rows, s=statistic: s(rows, rows), [len(evaluated)])
            else:
                self._add(metric, statistic, [len(evaluated), len(reference)])
        if (metric := f"KAD-{network}") in self.scores.metrics:
            whole = [chosen(clips, np.arange(len(clips))) for clips in (evaluated, reference)]
            distance = kernel_audio_distance(*whole, bandwidth=self.options.bandwidth)
            self.scores.bandwidths[metric] = distance.bandwidth

    def add_classes(self, network: str, kind: str, *, pairs: bool = False) -> None:
        """Add the KL divergence of pairs, and the Inception score of all generated clips, or of the pairs."""
        # PANNs' logits are the only features whose names are paired as they are.
        paired = None
        if self.options.pairs and self._both(kind):
            paired = self._paired(kind, cleaned=kind != "pann_logits")
            values = kl_divergences(np.stack(paired.evaluated), np.stack(paired.reference))
            self._add_mean(f"KL-{network}-softmax", paired.clips, values)
        if kind not in self.mine or (pairs and paired is None):
            return
        rows = paired.evaluated if pairs and paired else list(self._read(self._sides[0], kind).values())
        logits = np.stack(rows)
        # Resampled clips are in a random order, as those of the parts are.
        self._add(f"ISC-{network}-mean", lambda rows: inception_score(logits[rows]).mean, [len(logits)])
        if f"ISC-{network}-mean" in self.scores.metrics:
            self.scores.metrics[f"ISC-{network}-std"] = inception_score(logits).std

    def add_accuracy(self) -> None:
        """Add the shares of the clips whose materials, motions and classes the embedded tagger finds."""
        if not (self.options.classes and self._paired_kinds("tagger_logits", "tagger_labels")):
            return
        pairs = self._paired("tagger_logits", "tagger_labels")
        right = accuracy(np.stack(pairs.evaluated), np.stack(pairs.reference), self.options.classes)
        for kind, values in right.items():
            known = np.isfinite(values)
            if known.any():
                clips = list(itertools.compress(pairs.clips, known))
                self._add_mean(f"{kind}-accuracy", clips, values[known])

    def add_similarity(self, metric: str, mine: str, theirs: str) -> None:
        """Add the mean cosine of the features of pairs."""
        if self._paired_kinds(mine, theirs):
            pairs = self._paired(mine, theirs)
            values = cosine_similarities(np.stack(pairs.evaluated), np.stack(pairs.reference))
            self._add_mean(metric, pairs.clips, values)

    def add_desync(self) -> None:
        """Add the mean offset that Synchformer finds; only a few clips are in memory at once."""
        kinds = "synchformer_audio", "synchformer_video"
        head = self.options.offset_logits
        if head is None or not self._paired_kinds(*kinds):
            return
        with self._sides[0].open(kinds[0]) as sounds, self._sides[1].open(kinds[1]) as pictures:
            names = self._names_of_pairs(kinds, sounds, pictures)
            offsets = np.concatenate(
                [self._offsets(head, chunk) for chunk in _chunks(names, sounds, pictures)]
            )
        finite = np.isfinite(offsets)
        if bad := [clip for clip, good in zip(names, finite, strict=True) if not good]:
            self.scores.not_finite["synchformer"] = bad
        self._add_mean("DeSync", list(itertools.compress(names, finite)), offsets[finite])

    def add_av_align(self) -> None:
        """Add AV-Align of pairs; clips with neither motion nor onsets have no value."""
        if not self._paired_kinds("audio_peaks", "video_peaks"):
            return
        pairs = self._paired("audio_peaks", "video_peaks")
        formats = self._sides[1].read("video_format")
        values = {
            clip: av_align(sound, picture, float(formats[clean_id(clip)][0]))
            for clip, sound, picture in zip(pairs.clips, pairs.evaluated, pairs.reference, strict=True)
        }
        known = {clip: value for clip, value in values.items() if value is not None}
        self.scores.without_value["AV-Align"] = sorted(values.keys() - known.keys())
        if known:
            self._add_mean("AV-Align", list(known), np.array(list(known.values())))

    def add_onsets(self) -> None:
        """Add the scores of onsets against true events, over all onsets of all clips with an event."""
        if not self._paired_kinds("onsets", "events"):
            return
        pairs = self._paired("onsets", "events")
        matches = {
            clip: match_onsets(detected, events, self.options.tolerance)
            for clip, detected, events in zip(pairs.clips, pairs.evaluated, pairs.reference, strict=True)
            if len(events)
        }
        if not matches:
            return
        scores = list(matches.values())
        self.scores.per_clip["onset-F1"] = {clip: score.f1 for clip, score in matches.items()}
        for metric, figure in _ONSET_FIGURES.items():
            resamples = RESAMPLES if self.options.resamples else 0
            self._add(metric, lambda rows, f=figure: _figure(scores, rows, f), [len(scores)], resamples)

    def add_onset_protocol(self) -> None:
        """Add the comparison of onsets with those of the real sound, as published for Greatest Hits."""
        if not (self.options.pairs and self._both("protocol_onsets")):
            return
        pairs = self._paired("protocol_onsets")
        clips = {
            clip: compare_clip(Onsets.of_columns(mine), theirs[:, 0], tolerance=self.options.tolerance)
            for clip, mine, theirs in zip(pairs.clips, pairs.evaluated, pairs.reference, strict=True)
            if len(theirs)
        }
        self.scores.without_value["Greatest-Hits-AP"] = sorted(set(pairs.clips) - clips.keys())
        if clips:
            counts = np.array([clip.has_same_count for clip in clips.values()], float)
            self._add_mean("Greatest-Hits-count", list(clips), counts)
            precisions = np.array([clip.published_average_precision for clip in clips.values()])
            self._add_mean("Greatest-Hits-AP", list(clips), precisions)

    def _offsets(self, head: OffsetLogits, pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Return the mean offset at both ends of each clip, (B,); NaN where features are not finite."""
        sound, picture = pairs
        finite = np.isfinite(sound).all(axis=(1, 2, 3)) & np.isfinite(picture).all(axis=(1, 2, 3))
        ends = slice(None, HEAD_SEGMENTS), slice(-HEAD_SEGMENTS, None)
        logits = np.stack([head(picture[:, end], sound[:, end]) for end in ends], axis=1)
        means = offset_magnitudes(np.nan_to_num(logits)).mean(axis=1)
        return np.where(finite, means, np.nan)

    def _both(self, kind: str) -> bool:
        return kind in self.mine and kind in self.theirs

    def _paired_kinds(self, mine: str, theirs: str) -> bool:
        return self.options.pairs and mine in self.mine and theirs in self.theirs

    def _read(self, side: FeatureSet, kind: str) -> dict[str, np.ndarray]:
        """Return the features of a kind by clip, without those that are not finite."""
        features = side.read(kind)
        if bad := [clip for clip, array in features.items() if not np.isfinite(array).all()]:
            self.scores.not_finite[str(side.folder / kind)] = bad
        return {clip: array for clip, array in features.items() if clip not in bad}

    def _paired(self, kind: str, other: str | None = None, *, cleaned: bool = True) -> _Pairs:
        evaluated = self._read(self._sides[0], kind)
        reference = self._read(self._sides[1], other or kind)
        names = self._names_of_pairs((kind, other or kind), evaluated, reference, cleaned=cleaned)
        return _Pairs(
            list(names),
            [evaluated[name] for name in names],
            [reference[clip] for clip in names.values()],
        )

    def _names_of_pairs(
        self,
        kinds: tuple[str, str],
        evaluated: Mapping[str, object],
        reference: Mapping[str, object],
        *,
        cleaned: bool = True,
    ) -> dict[str, str]:
        """Return the reference's ids by the names of generated clips that have one."""
        names = {name: clean_id(name) if cleaned else name for name in evaluated}
        self.scores.without_reference[kinds[0]] = [n for n, clip in names.items() if clip not in reference]
        if not (pairs := {name: clip for name, clip in names.items() if clip in reference}):
            raise _NoPairsError(
                f"{self._sides[0].folder}: none of the clips with {kinds[0]} has a reference in "
                f"{self._sides[1].folder}; the ids are like {next(iter(evaluated))!r} and "
                f"{next(iter(reference))!r}"
            )
        return pairs

    def _add_mean(self, metric: str, clips: Sequence[str], values: np.ndarray) -> None:
        self.scores.per_clip[metric] = dict(zip(clips, values.tolist(), strict=True))
        resamples = RESAMPLES if self.options.resamples else 0
        self._add(metric, lambda rows: values[rows].mean(), [len(values)], resamples)

    def _add(
        self, metric: str, statistic: Callable[..., float], clips: list[int], resamples: int | None = None
    ) -> None:
        resamples = self.options.resamples if resamples is None else resamples
        self.scores.clips[metric] = clips
        try:
            if resamples and min(clips) > 1:
                interval = bootstrap_interval(statistic, *clips, resamples=resamples)
                self.scores.intervals[metric] = interval
                self.scores.metrics[metric] = interval.estimate
            else:
                self.scores.metrics[metric] = float(statistic(*map(np.arange, clips)))
        except FlowleyError as error:
            # Such as the Inception score of fewer than ten clips.
            self.scores.undefined[metric] = str(error)


class _NoPairsError(FlowleyError):
    """No generated clip has a reference."""


def _figure(scores: Sequence[OnsetScore], rows: np.ndarray, figure: str) -> float:
    value = aggregate([scores[row] for row in rows])[figure]
    if value is None:
        raise FlowleyError("no onset is near an event")
    return value


def _chunks(
    names: Mapping[str, str], sounds: Mapping[str, StoredTensor], pictures: Mapping[str, StoredTensor]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the features of a few pairs at a time: of sound, and of the picture."""
    pairs = iter(names.items())
    while chunk := list(itertools.islice(pairs, _PAIRS)):
        yield (
            np.stack([sounds[name].read() for name, _ in chunk]),
            np.stack([pictures[clip].read() for _, clip in chunk]),
        )
