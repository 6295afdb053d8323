"""The metrics of features: which clips each compares, and how it is computed from them."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from flowley_jax.audio.onsets import TOLERANCE, OnsetScore, aggregate, match_onsets
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.av_align import av_align
from flowley_jax.evaluation.bootstrap import RESAMPLES
from flowley_jax.evaluation.classes import inception_score, kl_divergences
from flowley_jax.evaluation.desync import offset_magnitudes
from flowley_jax.evaluation.feature_sets import FeatureSet
from flowley_jax.evaluation.frechet import frechet_distance
from flowley_jax.evaluation.kernel_distance import (
    KernelAudioDistance,
    kernel_audio_distance,
    kernel_inception_distance,
)
from flowley_jax.evaluation.labels import accuracy
from flowley_jax.evaluation.levels import ClipLevel
from flowley_jax.evaluation.onset_protocol import Onsets, compare_clip
from flowley_jax.evaluation.similarity import cosine_similarities
from flowley_jax.interop.torch_files import StoredTensor
from flowley_jax.networks.synchformer_config import HEAD_SEGMENTS

# By the length of a generated clip's name, the place of the YouTube id in it.
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
# Random subsets of KID, and the most rows of each, as usual for it.
_KID_SUBSETS, _KID_ROWS = 100, 1000
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
        long; 0 for no intervals at all. Intervals of means take 1000.
      offset_logits: Synchformer's head, without which there is no DeSync.
      classes: names of the embedded tagger's classes, without which its accuracy is not measured.
      tolerance: largest distance of an onset from its event, in seconds.
      cleans_ids: whether names of generated clips hold ids, as av-benchmark finds them.
    """

    pairs: bool = True
    bandwidth: str = "reference"
    resamples: int = 0
    offset_logits: OffsetLogits | None = None
    classes: tuple[str, ...] = ()
    tolerance: float = TOLERANCE
    cleans_ids: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistic:
    """A metric of two sets of clips, or of a set of pairs.

    Attributes:
      function: function of row numbers (n,): one array for each set, or one for the pairs. Rows may repeat.
      sizes: number of clips of each set, or of the pairs.
      clips: ids of the evaluated clips, in the order of the rows.
      values: (clips,) value of each clip, if the metric is a mean over clips, or is F1.
      resamples: resampled sets of clips for its interval; None for the number that was asked for.
      bandwidth: function that returns the bandwidth of its kernel, if it has one.
    """

    function: Callable[..., float]
    sizes: list[int]
    clips: list[str]
    values: np.ndarray | None = None
    resamples: int | None = None
    bandwidth: Callable[[], float] | None = None

    def of_evaluated(self, rows: np.ndarray) -> float:
        """Return the metric for some rows of the evaluated clips, and all of the reference's."""
        return self.function(rows, *map(np.arange, self.sizes[1:]))


def clean_id(name: str) -> str:
    """Return the clip id within the name of a generated clip, as av-benchmark finds it: by length alone."""
    return name[_ID_PLACES[len(name)]] if len(name) in _ID_PLACES else name


def compared_kinds() -> list[tuple[str, str]]:
    """Return the kinds of features of generated and of reference clips that a metric of both compares."""
    same = ("pann_2048", "pann_logits", "vggish", "passt_embed", "passt_logits")
    return [
        *((kind, kind) for kind in same),
        *_SIMILARITIES.values(),
        ("synchformer_audio", "synchformer_video"),
    ]


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Features of the clips with a reference, in the order of the generated ones."""

    clips: list[str]
    evaluated: list[np.ndarray]
    reference: list[np.ndarray]


class FeatureMetrics:
    """The metrics of two sides, which are computed when they are asked for.

    Attributes:
      statistics: metrics by name.
      without_reference, not_finite, without_value, undefined: see `FeatureScores`.
    """

    def __init__(self, generated: FeatureSet, reference: FeatureSet, options: ScoreOptions):
        """Find the metrics whose features are there.

        Raises:
          FlowleyError: a folder or file is missing or damaged.
        """
        self._sides, self._options = (generated, reference), options
        self._mine, self._theirs = generated.kinds(), reference.kinds()
        self.statistics: dict[str, Statistic] = {}
        self.without_reference: dict[str, list[str]] = {}
        self.not_finite: dict[str, list[str]] = {}
        self.without_value: dict[str, list[str]] = {}
        self.undefined: dict[str, str] = {}
        for metric, add in self._steps().items():
            try:
                add()
            except _UndefinedError as error:
                self.undefined[metric] = str(error)

    def _steps(self) -> dict[str, Callable[[], None]]:
        """Return what adds the metrics, by the name of the first one."""
        pairs = self._options.pairs
        return {
            "FD-PANN": lambda: self._add_distances("PANN", "pann_2048"),
            "KL-PANNS-softmax": lambda: self._add_classes("PANNS", "pann_logits"),
            "FD-VGG": lambda: self._add_distances("VGG", "vggish"),
            "FD-PASST": lambda: self._add_distances("PASST", "passt_embed", pairs=pairs),
            "KL-PASST-softmax": lambda: self._add_classes("PASST", "passt_logits", pairs=pairs),
            "FD-TAGGER": lambda: self._add_distances("TAGGER", "tagger_embed"),
            "KL-TAGGER-softmax": lambda: self._add_classes("TAGGER", "tagger_logits"),
            "class-accuracy": self._add_accuracy,
            **{
                metric: functools.partial(self._add_similarity, metric, *kinds)
                for metric, kinds in _SIMILARITIES.items()
            },
            "LUFS": self._add_level,
            "DeSync": self._add_desync,
            "AV-Align": self._add_av_align,
            "onset-F1": self._add_onsets,
            "Greatest-Hits-AP": self._add_onset_protocol,
        }

    def _add_distances(self, network: str, kind: str, *, pairs: bool = False) -> None:
        """Add the Fréchet and the kernel distances of features of clips, each (D,) or (windows, D)."""
        if not self._both(kind):
            return
        if pairs:
            paired = self._paired(kind)
            clips, evaluated, reference = paired.clips, paired.evaluated, paired.reference
        else:
            mine, theirs = (self._read(side, kind) for side in self._sides)
            clips, evaluated, reference = list(mine), list(mine.values()), list(theirs.values())
        sizes = [len(evaluated)] if pairs else [len(evaluated), len(reference)]

        def chosen(rows: tuple[np.ndarray, ...]) -> list[np.ndarray]:
            """Return the features of rows of both sides; of pairs, these are the same rows."""
            return [
                np.concatenate([np.atleast_2d(side[row]) for row in of_side])
                for side, of_side in zip((evaluated, reference), (rows[0], rows[-1]), strict=True)
            ]

        def kernel(*rows: np.ndarray) -> KernelAudioDistance:
            return kernel_audio_distance(*chosen(rows), bandwidth=self._options.bandwidth)

        def whole_bandwidth() -> float:
            return kernel(*map(np.arange, sizes)).bandwidth

        self.statistics[f"FD-{network}"] = Statistic(
            function=lambda *rows: frechet_distance(*chosen(rows)), sizes=sizes, clips=clips
        )
        self.statistics[f"KAD-{network}"] = Statistic(
            function=lambda *rows: kernel(*rows).score, sizes=sizes, clips=clips, bandwidth=whole_bandwidth
        )
        self.statistics[f"KID-{network}"] = Statistic(
            function=lambda *rows: _inception_distance(*chosen(rows)), sizes=sizes, clips=clips, resamples=0
        )

    def _add_classes(self, network: str, kind: str, *, pairs: bool = False) -> None:
        """Add the KL divergence of pairs, and the Inception score of all generated clips, or of the pairs."""
        # av-benchmark pairs PANNs' logits by whole names.
        paired = None
        if self._options.pairs and self._both(kind):
            paired = self._paired(kind, cleaned=kind != "pann_logits")
            values = _defined(kl_divergences, paired)
            self._add_mean(f"KL-{network}-softmax", paired.clips, values)
        if kind not in self._mine or (pairs and paired is None):
            return
        if pairs and paired:
            clips, rows_of_logits = paired.clips, paired.evaluated
        else:
            features = self._read(self._sides[0], kind)
            clips, rows_of_logits = list(features), list(features.values())
        logits = np.stack(rows_of_logits)
        # The score shuffles the clips anyway, so that resampled rows need no order.
        for figure in ("mean", "std"):
            self.statistics[f"ISC-{network}-{figure}"] = Statistic(
                function=lambda rows, name=figure: getattr(inception_score(logits[rows]), name),
                sizes=[len(logits)],
                clips=clips,
                resamples=0 if figure == "std" else None,
            )

    def _add_accuracy(self) -> None:
        """Add the shares of the clips whose materials, motions and classes the embedded tagger finds."""
        if not (self._options.classes and self._paired_kinds("tagger_logits", "tagger_labels")):
            return
        pairs = self._paired("tagger_logits", "tagger_labels")
        right = accuracy(np.stack(pairs.evaluated), np.stack(pairs.reference), self._options.classes)
        for kind, values in right.items():
            known = np.isfinite(values)
            if known.any():
                clips = list(itertools.compress(pairs.clips, known))
                self._add_mean(f"{kind}-accuracy", clips, values[known])

    def _add_similarity(self, metric: str, mine: str, theirs: str) -> None:
        """Add the mean cosine of the features of pairs."""
        if self._paired_kinds(mine, theirs):
            pairs = self._paired(mine, theirs)
            values = _defined(cosine_similarities, pairs)
            self._add_mean(metric, pairs.clips, values)

    def _add_level(self) -> None:
        """Add the mean loudness of the sounds, and the shares of clipped sounds and of silent time."""
        if "level" not in self._mine:
            return
        levels = {clip: ClipLevel.of_array(x) for clip, x in self._sides[0].read("level").items()}
        loud = {clip: level.lufs for clip, level in levels.items() if math.isfinite(level.lufs)}
        self.without_value["LUFS"] = sorted(levels.keys() - loud.keys())
        if loud:
            self._add_mean("LUFS", list(loud), np.array(list(loud.values())))
        self._add_mean("clipped", list(levels), np.array([float(x.is_clipped) for x in levels.values()]))
        self._add_mean("silence", list(levels), np.array([x.silent_share for x in levels.values()]))

    def _add_desync(self) -> None:
        """Add the mean offset that Synchformer finds; only a few clips are in memory at once."""
        kinds = "synchformer_audio", "synchformer_video"
        head = self._options.offset_logits
        if head is None or not self._paired_kinds(*kinds):
            return
        with self._sides[0].open(kinds[0]) as sounds, self._sides[1].open(kinds[1]) as pictures:
            names = self._names_of_pairs(kinds, sounds, pictures)
            offsets: dict[str, float] = {}
            for chunk in _chunks(names, sounds, pictures):
                offsets |= self._offsets(head, chunk)
        short = sorted(names.keys() - offsets.keys())
        self.without_value["DeSync"] = short
        if bad := [clip for clip, offset in offsets.items() if not np.isfinite(offset)]:
            self.not_finite["synchformer"] = bad
        finite = {clip: offset for clip, offset in offsets.items() if np.isfinite(offset)}
        if not finite:
            raise _UndefinedError(
                f"no clip has finite features of {HEAD_SEGMENTS} segments (4.8 s) of sound and picture"
            )
        self._add_mean("DeSync", list(finite), np.array(list(finite.values())))

    def _add_av_align(self) -> None:
        """Add AV-Align of pairs; clips with neither motion nor onsets have no value."""
        if not self._paired_kinds("audio_peaks", "video_peaks"):
            return
        pairs = self._paired("audio_peaks", "video_peaks")
        formats = self._sides[1].read("video_format")
        values = {
            clip: av_align(sound, picture, float(formats[self._id(clip)][0]))
            for clip, sound, picture in zip(pairs.clips, pairs.evaluated, pairs.reference, strict=True)
        }
        known = {clip: value for clip, value in values.items() if value is not None}
        self.without_value["AV-Align"] = sorted(values.keys() - known.keys())
        if known:
            self._add_mean("AV-Align", list(known), np.array(list(known.values())))

    def _add_onsets(self) -> None:
        """Add the scores of onsets against true events, over all onsets of all clips with an event."""
        if not self._paired_kinds("onsets", "events"):
            return
        pairs = self._paired("onsets", "events")
        matches = {
            clip: match_onsets(detected, events, self._options.tolerance)
            for clip, detected, events in zip(pairs.clips, pairs.evaluated, pairs.reference, strict=True)
            if len(events)
        }
        if not matches:
            return
        scores, clips = list(matches.values()), list(matches)
        for metric, figure in _ONSET_FIGURES.items():
            self.statistics[metric] = Statistic(
                function=lambda rows, name=figure: _figure(scores, rows, name),
                sizes=[len(scores)],
                clips=clips,
                values=np.array([score.f1 for score in scores]) if figure == "f1" else None,
                resamples=RESAMPLES,
            )

    def _add_onset_protocol(self) -> None:
        """Add the comparison of onsets with those of the real sound, as published for Greatest Hits."""
        if not (self._options.pairs and self._both("protocol_onsets")):
            return
        pairs = self._paired("protocol_onsets")
        clips = {
            clip: compare_clip(Onsets.of_columns(mine), theirs[:, 0], tolerance=self._options.tolerance)
            for clip, mine, theirs in zip(pairs.clips, pairs.evaluated, pairs.reference, strict=True)
            if len(theirs)
        }
        self.without_value["Greatest-Hits-AP"] = sorted(set(pairs.clips) - clips.keys())
        if clips:
            counts = np.array([clip.has_same_count for clip in clips.values()], float)
            self._add_mean("Greatest-Hits-count", list(clips), counts)
            precisions = np.array([clip.published_average_precision for clip in clips.values()])
            self._add_mean("Greatest-Hits-AP", list(clips), precisions)

    def _offsets(
        self, head: OffsetLogits, pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]
    ) -> dict[str, float]:
        """Return the mean offset at both ends of each clip that is long enough; NaN for other features."""
        long = {clip: pair for clip, pair in pairs.items() if min(map(len, pair)) >= HEAD_SEGMENTS}
        if not long:
            return {}
        ends = slice(None, HEAD_SEGMENTS), slice(-HEAD_SEGMENTS, None)
        sound, picture = (
            np.stack([np.stack([pair[side][end] for end in ends]) for pair in long.values()])
            for side in (0, 1)
        )
        finite = [all(np.isfinite(x).all() for x in pair) for pair in long.values()]
        logits = np.stack([head(picture[:, end], sound[:, end]) for end in (0, 1)], axis=1)
        means = offset_magnitudes(np.nan_to_num(logits)).mean(axis=1)
        return dict(zip(long, np.where(finite, means, np.nan).tolist(), strict=True))

    def _id(self, name: str) -> str:
        return clean_id(name) if self._options.cleans_ids else name

    def _both(self, kind: str) -> bool:
        return kind in self._mine and kind in self._theirs

    def _paired_kinds(self, mine: str, theirs: str) -> bool:
        return self._options.pairs and mine in self._mine and theirs in self._theirs

    def _read(self, side: FeatureSet, kind: str) -> dict[str, np.ndarray]:
        """Return the features of a kind by clip, without those that are not finite."""
        features = side.read(kind)
        bad = [clip for clip, array in features.items() if not np.isfinite(array).all()]
        if bad:
            self.not_finite[str(side.folder / kind)] = bad
        if len(bad) == len(features):
            raise _UndefinedError(f"{side.folder}: no clip has {'finite ' if bad else ''}{kind}")
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
        names = {name: self._id(name) if cleaned else name for name in evaluated}
        self.without_reference[kinds[0]] = [n for n, clip in names.items() if clip not in reference]
        if not (pairs := {name: clip for name, clip in names.items() if clip in reference}):
            raise _UndefinedError(
                f"{self._sides[0].folder}: none of the clips with {kinds[0]} has a reference in "
                f"{self._sides[1].folder}; the ids are like {next(iter(evaluated))!r} and "
                f"{next(iter(reference))!r}"
            )
        return pairs

    def _add_mean(self, metric: str, clips: Sequence[str], values: np.ndarray) -> None:
        self.statistics[metric] = Statistic(
            function=lambda rows: float(values[rows].mean()),
            sizes=[len(values)],
            clips=list(clips),
            values=values,
            resamples=RESAMPLES,
        )


class _UndefinedError(FlowleyError):
    """A metric is not defined for the clips, although their features are there."""


def _defined(function: Callable[[np.ndarray, np.ndarray], np.ndarray], pairs: _Pairs) -> np.ndarray:
    """Return a function of the features of pairs, of which one side may have other dimensions."""
    try:
        return function(np.stack(pairs.evaluated), np.stack(pairs.reference))
    except FlowleyError as error:
        raise _UndefinedError(str(error)) from error


def _inception_distance(evaluated: np.ndarray, reference: np.ndarray) -> float:
    size = min(_KID_ROWS, len(evaluated), len(reference))
    if size < 2:
        raise FlowleyError(f"KID needs two clips; there are {len(evaluated)} and {len(reference)}")
    return kernel_inception_distance(evaluated, reference, subsets=_KID_SUBSETS, size=size).mean


def _figure(scores: Sequence[OnsetScore], rows: np.ndarray, figure: str) -> float:
    value = aggregate([scores[row] for row in rows])[figure]
    if value is None:
        raise FlowleyError("no onset is near an event")
    return value


def _chunks(
    names: Mapping[str, str], sounds: Mapping[str, StoredTensor], pictures: Mapping[str, StoredTensor]
) -> Iterator[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Yield the features of a few pairs at a time by clip: of the sound, and of the picture."""
    pairs = iter(names.items())
    while chunk := list(itertools.islice(pairs, _PAIRS)):
        yield {name: (sounds[name].read(), pictures[clip].read()) for name, clip in chunk}
