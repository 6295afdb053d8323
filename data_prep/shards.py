"""The files of the records, written by Beam workers from features that are made."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from data_prep.fitting import posterior
from data_prep.pipeline import run
from data_prep.rows import Row, Text
from data_prep.store import FeatureStore
from flowley_jax.audio.pca import PcaCodec
from flowley_jax.audio.protocols import AudioCodec
from flowley_jax.data.record import Dims, Example, Shard, describe, shard_name, write_shard
from flowley_jax.errors import FlowleyError
from flowley_jax.whole_files import naming, write_text


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One file: its split, its number, and its clips."""

    split: str
    index: int
    rows: Sequence[Row]

    @property
    def name(self) -> str:
        return shard_name(self.split, self.index)


def write_shards(
    folder: Path,
    tasks: Sequence[ShardTask],
    dims: Dims,
    codec: AudioCodec,
    store: FeatureStore,
    options: PipelineOptions | None,
) -> dict[str, Any]:
    """Writes a data set; files that are there from a run that was stopped are kept, until `remove_notes`.

    Returns: of every file its examples, their bytes, its size and its SHA-256.

    Raises:
      FlowleyError: features are damaged, or the disk refuses.
    """
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    missing = [task for task in tasks if not _note(folder, task).is_file()]
    pca = codec if isinstance(codec, PcaCodec) else None
    run(missing, {"write": beam.ParDo(_Write(folder, dims, pca, store))}, options)
    notes = {task.name: _read_note(folder, task) for task in tasks}
    shards: dict[str, list[Shard]] = {}
    for task in tasks:
        note = notes[task.name]
        shards.setdefault(task.split, []).append(Shard(note["examples"], note["bytes"]))
    describe(folder, dims, shards)
    # What workers left that were killed.
    for path in set(folder.glob(".*")) - {_note(folder, task) for task in tasks}:
        path.unlink()
    return notes


def remove_notes(folder: Path) -> None:
    """Removes what `write_shards` keeps beside the files to know that they are finished."""
    for path in folder.glob(".*.json"):
        path.unlink()


class _Write(beam.DoFn):
    def __init__(self, folder: Path, dims: Dims, codec: PcaCodec | None, store: FeatureStore):
        super().__init__()
        self._folder, self._dims, self._codec, self._store = folder, dims, codec, store

    def process(self, element: ShardTask):
        path = self._folder / element.name
        # Another worker may be at the same file, with the same content.
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        shard = write_shard(partial, self._dims, self._examples(element))
        digest = hashlib.sha256()
        with open(partial, "rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
        os.replace(partial, path)
        note = {
            "examples": shard.examples,
            "bytes": shard.size,
            "size": path.stat().st_size,
            "sha256": digest.hexdigest(),
        }
        write_text(_note(self._folder, element), json.dumps(note))

    def _examples(self, task: ShardTask) -> Iterator[Example]:
        for row in task.rows:
            features = self._store.read("media", row.media)
            example: dict[str, Any] = {
                "id": row.clip.id,
                "label": row.clip.label,
                **self._text(row.text),
                "more_captions": {source: self._text(text) for source, text in row.more.items()},
            }
            if "video_features" in features:
                example["video_features"] = features["video_features"]
            if features.keys() - {"video_features"}:
                example["audio_mean"], example["audio_std"] = posterior(self._codec, features)
            yield example

    def _text(self, text: Text) -> dict[str, Any]:
        return {"caption": text.caption, **self._store.read("text", text.key)}


def _note(folder: Path, task: ShardTask) -> Path:
    """What is known of a file once it is finished."""
    return folder / f".{task.name}.json"


def _read_note(folder: Path, task: ShardTask) -> dict[str, Any]:
    path = _note(folder, task)
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FlowleyError(f"{folder / task.name}: was not written ({error}); run again") from error
