"""The classes that the labels of a clip table name, and how often a tagger finds them.

A label joins the classes of a clip with " + ", such as "metal strikes + wheel". A class of two words is a
material and a motion.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from flowley_jax.errors import FlowleyError

SEPARATOR = " + "


def classes_of(label: str) -> tuple[str, ...]:
    """Return the classes that a label names; an empty label names none."""
    return tuple(part.strip() for part in label.split(SEPARATOR) if part.strip())


def all_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the classes of labels, each once and in alphabetical order."""
    return tuple(sorted({name for label in labels for name in classes_of(label)}))


def targets(labels: Iterable[str], classes: tuple[str, ...]) -> np.ndarray:
    """Return 1 for each class that a label names and 0 for the others, (labels, classes) float32.

    Raises:
      FlowleyError: a label names a class that is not among `classes`.
    """
    places = {name: index for index, name in enumerate(classes)}
    named = [classes_of(label) for label in labels]
    rows = np.zeros((len(named), len(classes)), np.float32)
    for row, names in zip(rows, named, strict=True):
        for name in names:
            if name not in places:
                raise FlowleyError(f"class {name!r} is not among the tagger's {', '.join(classes)}")
            row[places[name]] = 1.0
    return rows


def accuracy(logits: np.ndarray, named: np.ndarray, classes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return whether the likeliest classes of clips are those that their labels name.

    A clip with n materials is right if these are the n materials with the largest logits. The same holds for
    motions and for classes.

    Args:
      logits: (clips, classes) of a tagger.
      named: (clips, classes) of `targets`.
      classes: names of the classes.

    Returns:
      (clips,) of "class", "material" and "motion": 1 for a clip that is right, 0 for one that is not, and NaN
      for one without a material or a motion. Classes that are not two words have neither.

    Raises:
      FlowleyError: the shapes do not fit.
    """
    if logits.shape != named.shape or logits.shape[-1] != len(classes):
        raise FlowleyError(
            f"logits {logits.shape} and labels {named.shape} must both be (clips, {len(classes)})"
        )
    groupings = {"class": {name: [index] for index, name in enumerate(classes)}}
    for word, kind in enumerate(("material", "motion")):
        groups: dict[str, list[int]] = {}
        for index, name in enumerate(classes):
            if len(words := name.split()) == 2:
                groups.setdefault(words[word], []).append(index)
        groupings[kind] = groups
    return {kind: _right(logits, named, groups) for kind, groups in groupings.items() if groups}


def _right(logits: np.ndarray, named: np.ndarray, groups: Mapping[str, list[int]]) -> np.ndarray:
    scores = np.stack([logits[:, columns].max(axis=1) for columns in groups.values()], axis=1)
    truth = np.stack([named[:, columns].any(axis=1) for columns in groups.values()], axis=1)
    right = np.full(len(logits), np.nan)
    for row, (score, true) in enumerate(zip(scores, truth, strict=True)):
        if count := int(true.sum()):
            right[row] = true[np.argsort(-score, kind="stable")[:count]].all()
    return right
