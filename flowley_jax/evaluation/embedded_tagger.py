"""The embedded tagger of an evaluation: trained once on the real sounds of a table, then kept in a file."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from flowley_jax.common.progress import progress_bar
from flowley_jax.data.clip_table import TableClip
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.extraction import Reader
from flowley_jax.evaluation.labels import all_classes
from flowley_jax.evaluation.preparation import Preparation
from flowley_jax.evaluation.tagger import Tagger, load_tagger, save_tagger
from flowley_jax.evaluation.tagger_training import LEAST_CLIPS, MOST_CLASSES, TaggerTraining, train_tagger

log = logging.getLogger(__name__)
# More clips would only take longer.
MOST_CLIPS = 2000
_TRAINED_ON = "trained_on"


# Function that returns a context manager, which yields a reader that uses a preparation.
Readers = Callable[[Preparation], AbstractContextManager[Reader]]


def tagger_clips(table: Sequence[TableClip]) -> list[TableClip]:
    """Return the clips of a table that can train a tagger; none if there are too few, or too many classes."""
    training = [clip for clip in table if clip.split == "train" and clip.label]
    classes = all_classes(clip.label for clip in training)
    if len(training) < LEAST_CLIPS or not 2 <= len(classes) <= MOST_CLASSES:
        log.info(
            "no embedded tagger: it needs %d labelled training clips of 2 to %d classes; there are %d of %d",
            *(LEAST_CLIPS, MOST_CLASSES, len(training), len(classes)),
        )
        return []
    return training[:MOST_CLIPS]


def embedded_tagger(
    clips: Sequence[TableClip],
    path: Path,
    *,
    seconds: float,
    readers: Readers,
) -> Tagger:
    """Return the tagger of a file, or train it on the real sounds of clips and write the file.

    Args:
      clips: labelled clips, such as those of `tagger_clips`.
      path: the file.
      seconds: length of the sounds; shorter ones are left out.
      readers: source of the processes that read files.

    Raises:
      FlowleyError: the file holds a tagger that other clips or lengths trained, too few sounds can be read,
        or the labels name too many classes.
    """
    content = json.dumps([seconds, *((clip.id, clip.label) for clip in clips)])
    trained_on = hashlib.sha256(content.encode()).hexdigest()
    if path.exists():
        tagger, notes = load_tagger(path)
        if notes.get(_TRAINED_ON) != trained_on:
            raise FlowleyError(
                f"{path}: was trained on other clips or another --seconds; remove it, or choose another --out"
            )
        return tagger
    log_mels, labels = _training_sounds(clips, seconds, readers)
    training = TaggerTraining()
    with progress_bar("training the tagger", total=training.epochs) as bar:

        def progress(epoch: int, epochs: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.2f}", refresh=False)
            bar.update(epoch - bar.n)

        tagger = train_tagger(log_mels, labels, training=training, progress=progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tagger(tagger, path, {_TRAINED_ON: trained_on})
    # So that this evaluation uses the same weights as later ones.
    return load_tagger(path)[0]


def _training_sounds(
    clips: Sequence[TableClip], seconds: float, readers: Readers
) -> tuple[np.ndarray, list[str]]:
    """Return the log-mels (clips, T, bins) and the labels of the clips whose sound can be read."""
    log_mels, labels, faults = [], [], []
    with (
        readers(Preparation(("tagger",), seconds)) as read,
        progress_bar("reading real sounds for the tagger", total=len(clips)) as bar,
    ):
        results = read([(str(clip.video_path), ("tagger",)) for clip in clips])
        for clip, result in zip(clips, results, strict=True):
            bar.update()
            inputs = result["tagger"] if isinstance(result, dict) else result.detail
            if isinstance(inputs, str):
                faults.append(f"{clip.id}: {inputs}")
            else:
                log_mels.append(inputs["log_mels"])
                labels.append(clip.label)
    if len(labels) < LEAST_CLIPS:
        first = f" ({faults[0]}; see --seconds)" if faults else ""
        raise FlowleyError(
            f"the embedded tagger needs {LEAST_CLIPS} labelled training clips of {seconds:g} s with sound; "
            f"{len(labels)} of {len(clips)} can be used{first}"
        )
    return np.stack(log_mels), labels
