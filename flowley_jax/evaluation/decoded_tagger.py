"""The embedded tagger of a run, trained once on decoded latents of training clips and kept in its folder."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from flowley_jax.common import distributed
from flowley_jax.data.components import Components
from flowley_jax.data.record import Example, open_records
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.labels import all_classes
from flowley_jax.evaluation.preparation import ClipMedia, prepare
from flowley_jax.evaluation.shares import gathered, in_all, own_rows
from flowley_jax.evaluation.tagger import Tagger, TaggerConfig, load_tagger, save_tagger
from flowley_jax.evaluation.tagger_training import LEAST_CLIPS, MOST_CLASSES, train_tagger
from flowley_jax.interop.weight_files import read_notes

log = logging.getLogger(__name__)
TAGGER_FILE = "evaluation/tagger.safetensors"
# More clips would only take longer.
MOST_CLIPS = 320
# Clips that are decoded at once.
AT_ONCE = 8
_TRAINED_ON = "trained_on"


def decoded_tagger(records: Path, workdir: Path, components: Components) -> Tagger | None:
    """Return the tagger of a run's folder, which is trained if there is none; None if the labels do not do.

    All processes decode sounds, and the first one trains. Collective.

    Args:
      records: folder of the records; clips of their training split are taken at even distances.
      workdir: folder of the run.
      components: codec and vocoder of the run.

    Raises:
      FlowleyError: a record or the file is damaged, or the file cannot be written.
    """
    clips = in_all(lambda: _labelled_clips(records))
    labels = [_text(clip, "label") for clip in clips]
    classes = all_classes(labels)
    if len(clips) < LEAST_CLIPS or not 2 <= len(classes) <= MOST_CLASSES:
        log.info(
            "evaluation without the embedded tagger: it needs %d training clips with labels of 2 to %d "
            "classes; there are %d, with %d",
            LEAST_CLIPS,
            MOST_CLASSES,
            len(clips),
            len(classes),
        )
        return None
    content = json.dumps([(_text(clip, "id"), label) for clip, label in zip(clips, labels, strict=True)])
    trained_on = hashlib.sha256(content.encode()).hexdigest()
    path = workdir / TAGGER_FILE
    is_stored = in_all(lambda: distributed.is_first() and _is_trained_on(path, trained_on))
    if not distributed.broadcast_from_first(is_stored):
        log.info("training the embedded tagger on the sounds of %d clips, which takes minutes", len(clips))
        own = [clips[row] for row in own_rows(len(clips))]
        log_mels = gathered({"log_mels": in_all(lambda: _log_mels(own, components))}, len(clips))["log_mels"]

        def train() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tagger(train_tagger(log_mels, labels), path, {_TRAINED_ON: trained_on})

        distributed.first_does(train, failure=f"{path}: not written by the first process")
    return _tagger_of_first(path, TaggerConfig(classes=classes))


def decoded_sounds(clips: Sequence[Example], components: Components) -> list[np.ndarray]:
    """Return the sounds (N,) of examples of the records, decoded by the codec and the vocoder of a run."""
    latents = np.stack([np.asarray(clip["audio_mean"], np.float32) for clip in clips])
    return list(components.decode_audio(latents, seconds=components.seconds))


def _labelled_clips(records: Path) -> list[Example]:
    """Return the id, label and latents of training clips that have a label and a sound."""
    examples = open_records(records, "train")
    count = min(len(examples), MOST_CLIPS)
    chosen = (examples[int(index)] for index in np.linspace(0, len(examples) - 1, count))
    return [
        {name: clip[name] for name in ("id", "label", "audio_mean")}
        for clip in chosen
        if clip["label"] and clip["has_audio"]
    ]


def _is_trained_on(path: Path, trained_on: str) -> bool:
    return path.exists() and read_notes(path).get(_TRAINED_ON) == trained_on


def _log_mels(clips: Sequence[Example], components: Components) -> np.ndarray:
    """Return the inputs (clips, T, 80) of the tagger."""
    inputs = []
    for start in range(0, len(clips), AT_ONCE):
        for wave in decoded_sounds(clips[start : start + AT_ONCE], components):
            media = ClipMedia.of_wave("a training clip", wave, components.sample_rate)
            prepared = prepare(media, ("tagger",))["tagger"]
            if isinstance(prepared, str):
                raise FlowleyError(
                    f"the embedded tagger cannot take the sound of a training clip: {prepared}"
                )
            inputs.append(prepared["log_mels"])
    return np.stack(inputs)


def _tagger_of_first(path: Path, config: TaggerConfig) -> Tagger:
    """Return the tagger that the first process reads. Collective."""

    def tagger() -> Tagger:
        return load_tagger(path)[0] if distributed.is_first() else Tagger(config, rngs=nnx.Rngs(0))

    graphdef, weights = nnx.split(in_all(tagger))
    if jax.process_count() > 1:
        weights = jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(weights))
    return nnx.merge(graphdef, weights)


def _text(clip: Example, field: str) -> str:
    return clip[field].decode()
