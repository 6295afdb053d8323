"""The features of one side of a comparison, and views of it: halves, and the features of other clips."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from flowley_jax.evaluation.features import KINDS, check_features, open_features, present_kinds
from flowley_jax.interop.torch_files import StoredTensor

# Function of a kind and the stored clip ids; it returns the stored id of each id in the view.
Selection = Callable[[str, Sequence[str]], Mapping[str, str]]


def _as_they_are(kind: str, clips: Sequence[str]) -> Mapping[str, str]:
    del kind
    return {clip: clip for clip in clips}


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of a folder, which are read when they are asked for.

    Attributes:
      folder: the folder.
      select: which clips the set has, and under which ids.
      among: kinds that the set has, if they are in the folder; None for all.
    """

    folder: Path
    select: Selection = _as_they_are
    among: frozenset[str] | None = None

    def kinds(self) -> list[str]:
        """Return the names of the kinds; see `present_kinds` for the errors."""
        kinds = present_kinds(self.folder)
        return kinds if self.among is None else [kind for kind in kinds if kind in self.among]

    @contextlib.contextmanager
    def open(self, kind: str) -> Iterator[dict[str, StoredTensor]]:
        """Yield the features of a kind by clip id; see `open_features` for the errors."""
        with open_features(self.folder, kind) as stored:
            yield {clip: stored[source] for clip, source in self.select(kind, list(stored)).items()}

    def read(self, kind: str) -> dict[str, np.ndarray]:
        """Return the features of a kind by clip id; see `open_features` for the errors."""
        with self.open(kind) as stored:
            features = {clip: tensor.read() for clip, tensor in stored.items()}
        check_features(features, KINDS[kind], self.folder)
        return features


def half(folder: Path, which: int) -> FeatureSet:
    """Return every second clip of a folder, in the order of ids.

    Args:
      folder: the folder.
      which: 0 to begin with the first clip, 1 with the second.
    """
    return FeatureSet(folder, lambda kind, clips: {clip: clip for clip in sorted(clips)[which::2]})


def of_other_clips(folder: Path) -> FeatureSet:
    """Return the features of a folder where each clip has those of the next one in the order of ids."""

    def select(kind: str, clips: Sequence[str]) -> Mapping[str, str]:
        del kind
        ordered = sorted(clips)
        return dict(zip(ordered, ordered[1:] + ordered[:1], strict=True))

    return FeatureSet(folder, select)


def common_clips(first: Path, second: Path) -> tuple[FeatureSet, FeatureSet]:
    """Return two folders with the kinds and, of each kind, the clips that both have, in the same order."""
    among = frozenset(present_kinds(first)).intersection(present_kinds(second))

    def shared(folder: Path, other: Path) -> FeatureSet:
        def select(kind: str, clips: Sequence[str]) -> Mapping[str, str]:
            with open_features(other, kind) as stored:
                return {clip: clip for clip in sorted(clips) if clip in stored}

        return FeatureSet(folder, select, among)

    return shared(first, second), shared(second, first)
