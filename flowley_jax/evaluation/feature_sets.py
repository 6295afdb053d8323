"""The features of one side of a comparison, and views of it: halves, and the features of other clips."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from flowley_jax.evaluation.features import KINDS, check_features, open_features, present_kinds
from flowley_jax.interop.torch_files import StoredTensor

# Function from the ids of the clips that are stored to stored ids by the ids of the view.
Selection = Callable[[Sequence[str]], Mapping[str, str]]


def _as_they_are(clips: Sequence[str]) -> Mapping[str, str]:
    return {clip: clip for clip in clips}


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of a folder, which are read when they are asked for.

    Attributes:
      folder: the folder.
      select: which clips the set has, and under which ids.
    """

    folder: Path
    select: Selection = _as_they_are

    def kinds(self) -> list[str]:
        """Return the names of the kinds; see `present_kinds` for the errors."""
        return present_kinds(self.folder)

    @contextlib.contextmanager
    def open(self, kind: str) -> Iterator[dict[str, StoredTensor]]:
        """Yield the features of a kind by clip id; see `open_features` for the errors."""
        with open_features(self.folder, kind) as stored:
            yield {clip: stored[source] for clip, source in self.select(list(stored)).items()}

    def read(self, kind: str) -> dict[str, np.ndarray]:
        """Return the features of a kind by clip id; see `open_features` for the errors."""
        with self.open(kind) as stored:
            features = {clip: tensor.read() for clip, tensor in stored.items()}
        check_features(features, KINDS[kind], self.folder)
        return features


def half(folder: Path, which: int) -> FeatureSet:
    """Return every other clip of a folder: from the first one on (0), or from the second one on (1)."""
    return FeatureSet(folder, lambda clips: {clip: clip for clip in sorted(clips)[which::2]})


def of_other_clips(folder: Path) -> FeatureSet:
    """Return the features of a folder where each clip has those of the next one in the order of ids."""

    def select(clips: Sequence[str]) -> Mapping[str, str]:
        ordered = sorted(clips)
        return dict(zip(ordered, ordered[1:] + ordered[:1], strict=True))

    return FeatureSet(folder, select)
