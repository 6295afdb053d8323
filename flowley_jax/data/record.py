"""The schema of a training example, stored as a TFDS dataset in ArrayRecord files without TensorFlow.

| field | shape |
|---|---|
| audio_mean, audio_std | (Ta, audio_dim) float32, posterior of the audio codec |
| video_features | (Tv, video_dim) float32 |
| text_features | (Tt, text_dim) float32, padded to Tt |
| text_len | int32, tokens that are not padding |
| id, caption, label | text |
"""

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from flowley_jax.errors import FlowleyError

_NAME = "clip_records"
_VERSION = "1.0.0"
FLOAT_FIELDS = ("audio_mean", "audio_std", "video_features", "text_features")
TEXT_FIELDS = ("id", "caption", "label")

Example = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dims:
    """Lengths and widths of one example: Ta, Tv, Tt and their feature widths."""

    audio_length: int
    audio_dim: int
    video_length: int
    video_dim: int
    text_length: int
    text_dim: int


class _ClipRecords(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builder whose examples are handed to it; TFDS's own builder of this kind needs TensorFlow."""

    name = _NAME
    VERSION = tfds.core.Version(_VERSION)

    def __init__(self, *, dims: Dims, splits: Mapping[str, Callable[[], Iterable[Example]]], data_dir: str):
        self._dims = dims
        self._splits = splits
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Latents and features of clips, for training video-to-audio models.",
            features=_features(self._dims),
            # Order is kept so that evaluation sees the clips as the clip table lists them.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: enumerate(examples()) for split, examples in self._splits.items()}

    def _generate_examples(self):
        raise NotImplementedError("examples come with the splits")


def write_records(
    records_dir: str | os.PathLike,
    dims: Dims,
    splits: Mapping[str, Callable[[], Iterable[Example]]],
) -> None:
    """Writes a dataset of one or more splits into `records_dir`; it appears whole or not at all.

    Args:
      records_dir: folder, made if missing.
      dims: sizes of every example.
      splits: for each split a function that starts an iteration over its examples.

    Raises:
      FlowleyError: if the folder has records already, an example does not fit, or the disk is full.
    """
    records_dir = Path(records_dir)
    if has_records(records_dir):
        raise FlowleyError(f"{records_dir}: has records already")
    try:
        records_dir.mkdir(parents=True, exist_ok=True)
        builder = _ClipRecords(dims=dims, splits=splits, data_dir=str(records_dir))
        # TFDS prints about downloads that do not happen.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare()
    except OSError as error:
        raise FlowleyError(f"{records_dir}: cannot be written: {error.strerror or error}") from error
    except (ValueError, AssertionError) as error:  # the latter for a split without examples
        first_line = str(error).strip().splitlines()[0]
        raise FlowleyError(f"{records_dir}: the examples do not fit the records: {first_line}") from error


def has_records(records_dir: str | os.PathLike) -> bool:
    """Whether `records_dir` holds a finished dataset."""
    return (_dataset_dir(records_dir) / "dataset_info.json").is_file()


def open_records(records_dir: str | os.PathLike, split: str) -> Sequence[Example]:
    """Random access to the examples of a split, as mappings of NumPy arrays and bytes.

    Raises:
      FlowleyError: if there are no records, no such split, no example in it, or its files are damaged.
    """
    if not Path(records_dir).is_dir():
        raise FlowleyError(f"{records_dir}: no such folder of records")
    if not has_records(records_dir):
        raise FlowleyError(f"{records_dir}: has no records ({_NAME}/{_VERSION} is missing or unfinished)")
    builder = tfds.builder_from_directory(str(_dataset_dir(records_dir)))
    filled = [name for name, info in builder.info.splits.items() if info.num_examples]
    if split not in filled:
        raise FlowleyError(f"{records_dir}: no examples in split {split!r}; there are {', '.join(filled)}")
    source = builder.as_data_source(split)  # pyright: ignore[reportCallIssue]
    try:
        # The files are opened by the first reading, which would otherwise be in the middle of a run.
        source[0]
    except (RuntimeError, OSError, ValueError) as error:
        raise FlowleyError(f"{records_dir}: the records of {split!r} are damaged ({error})") from error
    return source


def has_split(records_dir: str | os.PathLike, split: str) -> bool:
    """Whether the records have an example in a split."""
    builder = tfds.builder_from_directory(str(_dataset_dir(records_dir)))
    return split in builder.info.splits and builder.info.splits[split].num_examples > 0


def arrays_of(example: Example) -> dict[str, np.ndarray]:
    """The numerical fields, which batches are made of."""
    arrays = {field: np.asarray(example[field], np.float32) for field in FLOAT_FIELDS}
    return {**arrays, "text_len": np.asarray(example["text_len"], np.int32)}


def texts_of(example: Example) -> dict[str, str]:
    """The fields id, caption and label as text."""
    return {field: example[field].decode() for field in TEXT_FIELDS}


def _dataset_dir(records_dir: str | os.PathLike) -> Path:
    return Path(records_dir) / _NAME / _VERSION


def _features(dims: Dims) -> tfds.features.FeaturesDict:
    def tensor(*shape: int):
        # As bytes: ten times faster to write than as a list of numbers, and as fast to read.
        return tfds.features.Tensor(shape=shape, dtype=np.float32, encoding=tfds.features.Encoding.BYTES)

    return tfds.features.FeaturesDict(
        {
            "audio_mean": tensor(dims.audio_length, dims.audio_dim),
            "audio_std": tensor(dims.audio_length, dims.audio_dim),
            "video_features": tensor(dims.video_length, dims.video_dim),
            "text_features": tensor(dims.text_length, dims.text_dim),
            "text_len": tfds.features.Scalar(dtype=np.int32),
            **{field: tfds.features.Text() for field in TEXT_FIELDS},
        }
    )
