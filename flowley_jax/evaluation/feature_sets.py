"""The features of one side of a comparison, and views of it: halves, and the features of other clips."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
        if features:
            check_features(features, KINDS[kind], self.folder)
        return features

    def only(self, clips: Mapping[str, Collection[str]]) -> "FeatureSet":
        """Return the set with some kinds only, and with some clips of each.

        Args:
          clips: ids of the clips by kind.
        """
        return self._selected(
            lambda kind, ids: {clip: ids[clip] for clip in ids if clip in clips[kind]}, frozenset(clips)
        )

    def half(self, which: int) -> "FeatureSet":
        """Return every second clip in the order of ids.

        Args:
          which: 0 to begin with the first clip, 1 with the second.
        """
        return self._selected(lambda kind, ids: {clip: ids[clip] for clip in sorted(ids)[which::2]})

    def of_other_clips(self) -> "FeatureSet":
        """Return the set where each clip has the features of the next one in the order of ids.

        A clip that is the only one of a kind has none.
        """

        def rotated(kind: str, ids: Mapping[str, str]) -> Mapping[str, str]:
            ordered = sorted(ids)
            others = ordered[1:] + ordered[:1] if len(ordered) > 1 else []
            return {clip: ids[other] for clip, other in zip(ordered, others, strict=False)}

        return self._selected(rotated)

    def in_common_with(self, other: "FeatureSet") -> "FeatureSet":
        """Return the set with the kinds and, of each kind, the clips that another set has, ordered by id."""

        def common(kind: str, ids: Mapping[str, str]) -> Mapping[str, str]:
            with other.open(kind) as stored:
                return {clip: ids[clip] for clip in sorted(ids) if clip in stored}

        return self._selected(common, frozenset(other.kinds()))

    def _selected(
        self,
        select: Callable[[str, Mapping[str, str]], Mapping[str, str]],
        among: frozenset[str] | None = None,
    ) -> "FeatureSet":
        """Return a view of this view."""
        if among is not None and self.among is not None:
            among &= self.among
        return dataclasses.replace(
            self,
            select=lambda kind, stored: select(kind, self.select(kind, stored)),
            among=self.among if among is None else among,
        )
