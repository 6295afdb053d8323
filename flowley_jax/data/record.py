"""The schema of a training example, stored as a TFDS data set in ArrayRecord files without TensorFlow.

| field | shape |
|---|---|
| audio_mean, audio_std | (Ta, audio_dim) float32, posterior of the audio codec |
| video_features | (Tv, video_dim) float32 or float16 |
| text_features | (≤ Tt, text_dim), same type; rows of zeros at the end are left out |
| text_length | int32, Tt |
| text_len | int32, number of tokens without padding |
| id, caption, label | text |
| has_audio, has_video | bool; where it is false, the latents or video features are zeros |
| more_captions/<source> | caption, text_features and text_len of another source; text_len 0 for none |

Rows of padding that are not zero are stored too, because the published network reads them.
"""

import bisect
import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  (so that NumPy knows the type bfloat16)
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core import dataset_info, example_serializer
from tensorflow_datasets.core.splits import SplitDict

from flowley_jax.common.files import atomic_write, name_errors
from flowley_jax.common.locks import lock_folder
from flowley_jax.data.dims import Dims
from flowley_jax.errors import FlowleyError

_NAME = "clip_records"
_VERSION = "3.0.0"
_PARTIAL = ".partial-records"
METADATA_FILES = ("dataset_info.json", "features.json")
# About half a gigabyte at the published sizes.
EXAMPLES_PER_FILE = 1000
LATENT_FIELDS = ("audio_mean", "audio_std")
FEATURE_FIELDS = ("video_features", "text_features")
TEXT_FIELDS = ("id", "caption", "label")
# Source of the caption that every example has.
TABLE_CAPTIONS = "table"

Example = Mapping[str, Any]


class Shard(NamedTuple):
    """Number of examples in one file of a data set, and their size in bytes."""

    examples: int
    size: int


def write_records(
    records_dir: str | os.PathLike,
    dims: Dims,
    splits: Mapping[str, Callable[[], Iterable[Example]]],
) -> None:
    """Write a data set of one or more splits, atomically.

    Args:
      records_dir: folder of the records; it is created if it does not exist.
      dims: sizes of every example.
      splits: for each split, a function that returns an iterable of its examples.

    Raises:
      FlowleyError: the folder already has records, an example does not fit, or a file cannot be written.
    """
    records_dir = Path(records_dir)
    with lock_folder(records_dir), name_errors(records_dir):
        target, partial = dataset_dir(records_dir), records_dir / _PARTIAL
        if target.exists():
            raise FlowleyError(f"{records_dir}: already has records")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            shards = {
                split: [
                    write_shard(partial / shard_name(split, index), dims, chunk)
                    for index, chunk in enumerate(_chunks(examples()))
                ]
                for split, examples in splits.items()
            }
            write_metadata(partial, dims, shards)
            target.parent.mkdir(exist_ok=True)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_shard(path: Path, dims: Dims, examples: Iterable[Example]) -> Shard:
    """Write one file of a data set, atomically.

    Args:
      path: the file.
      dims: sizes of every example.
      examples: mappings with the fields of the module's table except text_length, has_audio and has_video.
        An example without audio has no audio_mean and audio_std; one without video has no video_features.
        more_captions maps each source that has a caption to its fields.

    Raises:
      FlowleyError: an example does not fit, or the file cannot be written. The message names the file.
    """
    features = _features(dims)
    # The annotation of ExampleSerializer excludes nested features, which it does accept.
    serializer = example_serializer.ExampleSerializer(
        features.get_serialized_info()  # pyright: ignore[reportArgumentType]
    )
    count = size = 0
    # ArrayRecord's errors of the disk are RuntimeErrors.
    with atomic_write(path, RuntimeError) as partial, _name_misfits(path):
        # One example per group, because reading an example reads its whole group.
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        try:
            for example in examples:
                proto = serializer.get_tf_example(features.encode_example(_stored(example, dims)))
                # Deterministic, so that every process writes the same bytes for the same examples.
                content = proto.SerializeToString(deterministic=True)
                writer.write(content)
                count, size = count + 1, size + len(content)
        finally:
            writer.close()
    return Shard(count, size)


@contextlib.contextmanager
def _name_misfits(path: Path) -> Iterator[None]:
    try:
        yield
    except FlowleyError:
        raise
    except ValueError as error:
        raise FlowleyError(f"{path}: an example does not fit the records: {error}") from error


def shard_name(split: str, index: int) -> str:
    """Return the file name that TFDS expects for a shard of a split."""
    return f"{_NAME}-{split}.array_record-{index:05d}"


def write_metadata(folder: Path, dims: Dims, shards: Mapping[str, Sequence[Shard]]) -> None:
    """Write the metadata of a data set whose files exist.

    Args:
      folder: folder of the files.
      dims: sizes of every example.
      shards: files of each split, in order.

    Raises:
      FlowleyError: a split has no examples.
    """
    info = _description(folder, dims)
    splits = []
    for split, members in shards.items():
        if not sum(shard.examples for shard in members):
            raise FlowleyError(f"{folder}: the split {split!r} has no examples")
        template = tfds.core.ShardedFileTemplate(
            dataset_name=_NAME,
            data_dir=epath.Path(folder),
            split=split,
            filetype_suffix="array_record",
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
        )
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.examples for shard in members],
                num_bytes=sum(shard.size for shard in members),
                filename_template=template,
            )
        )
    info.set_splits(SplitDict(splits))
    info.write_to_directory(str(folder))


def _description(folder: Path, dims: Dims) -> tfds.core.DatasetInfo:
    """Return the description of the data set.

    A `GeneratorBasedBuilder` would make one too, but asks the internet for it and leaves a temporary folder.
    """
    identity = dataset_info.DatasetIdentity(
        name=_NAME, version=tfds.core.Version(_VERSION), data_dir=str(folder), module_name=__name__
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description="Latents and features of clips, for training video-to-audio models.",
        features=_features(dims),
        # Evaluation expects the clips in the order of the clip table.
        disable_shuffling=True,
    )
    info.set_file_format("array_record")
    return info


def _chunks(examples: Iterable[Example]) -> Iterator[Iterator[Example]]:
    """Yield the examples of one file after another; each iterator must be exhausted before the next."""
    remaining = iter(examples)
    for first in remaining:
        yield itertools.chain([first], itertools.islice(remaining, EXAMPLES_PER_FILE - 1))


def has_records(records_dir: str | os.PathLike) -> bool:
    """Return whether a folder holds complete records."""
    return (dataset_dir(records_dir) / "dataset_info.json").is_file()


def open_records(records_dir: str | os.PathLike, split: str) -> Sequence[Example]:
    """Return the examples of a split as a sequence of mappings of NumPy arrays and bytes.

    Raises:
      FlowleyError: there are no records, their metadata is damaged, the split is missing or empty, or its
        first example is damaged. Reading any other damaged example from the result also raises it. The
        message names the file.
    """
    if not Path(records_dir).is_dir():
        raise FlowleyError(f"{records_dir}: no such folder of records")
    if not has_records(records_dir):
        raise FlowleyError(f"{records_dir}: has no records ({_NAME}/{_VERSION} is missing or incomplete)")
    builder = _builder(records_dir)
    filled = [name for name, info in builder.info.splits.items() if info.num_examples]
    if split not in filled:
        raise FlowleyError(
            f"{records_dir}: split {split!r} has no examples; splits with examples: {', '.join(filled)}"
        )
    examples = _Examples(
        builder.as_data_source(split),  # pyright: ignore[reportCallIssue]
        dataset_dir(records_dir),
        split,
        builder.info.splits[split].shard_lengths,
    )
    # Files are opened on first access. Read one example, so that an error appears now and not during a run.
    examples[0]
    return examples


class _Examples(Sequence[Example]):
    """Examples of a split, with errors that name an unreadable example and its file."""

    def __init__(self, source: Sequence[Example], folder: Path, split: str, lengths: Sequence[int]):
        self._source, self._folder, self._split = source, folder, split
        self._ends = list(itertools.accumulate(lengths))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return self._source[index]
        except MemoryError:
            raise
        except Exception as error:  # ArrayRecord, protobuf and TFDS raise errors of many types.
            file = self._folder / shard_name(self._split, bisect.bisect_right(self._ends, index))
            reason = " ".join(str(error).split())
            raise FlowleyError(
                f"{file}: example {index} of {self._split!r} is damaged ({reason}); data_prep.extract with "
                "--verify writes damaged files again"
            ) from error


def check_metadata(records_dir: str | os.PathLike) -> None:
    """Check that the metadata of complete records can be read.

    Raises:
      FlowleyError: it is damaged. The message names the folder.
    """
    _builder(records_dir)


def _builder(records_dir: str | os.PathLike) -> tfds.core.DatasetBuilder:
    folder = dataset_dir(records_dir)
    try:
        builder = tfds.builder_from_directory(str(folder))
        if builder.info.features is None:
            raise ValueError("features.json is missing")
        return builder
    except MemoryError:
        raise
    except Exception as error:  # Protobuf, JSON and TFDS raise errors of many types.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FlowleyError(
            f"{folder}: dataset_info.json or features.json is damaged ({reason}); data_prep.extract writes "
            "them again"
        ) from error


def has_split(records_dir: str | os.PathLike, split: str) -> bool:
    """Return whether a split of the records has examples."""
    builder = _builder(records_dir)
    return split in builder.info.splits and builder.info.splits[split].num_examples > 0


def arrays_of(
    example: Example, *, feature_dtype: str = "float32", caption_source: str = TABLE_CAPTIONS
) -> dict[str, np.ndarray]:
    """Return the numerical fields of an example, with text padded with zeros, as batches need them.

    Args:
      example: example of the records.
      feature_dtype: type of the video and text features; latents are float32.
      caption_source: source of the caption that the text features belong to.
    """
    text = example if caption_source == TABLE_CAPTIONS else example["more_captions"][caption_source]
    features = np.asarray(text["text_features"], np.dtype(feature_dtype))
    missing = int(example["text_length"]) - len(features)
    return {
        **{field: np.asarray(example[field], np.float32) for field in LATENT_FIELDS},
        "video_features": np.asarray(example["video_features"], np.dtype(feature_dtype)),
        "text_features": np.pad(features, ((0, missing), (0, 0))),
        "text_len": np.asarray(text["text_len"], np.int32),
        "has_video": np.asarray(example["has_video"], np.bool_),
    }


def caption_sources(example: Example) -> list[str]:
    """Return the sources that have a caption for an example."""
    more = example.get("more_captions", {})
    return [TABLE_CAPTIONS, *(source for source, text in more.items() if text["text_len"] > 0)]


def dataset_dir(records_dir: str | os.PathLike) -> Path:
    """Return the folder of the data set within a folder of records."""
    return Path(records_dir) / _NAME / _VERSION


def _stored(example: Example, dims: Dims) -> dict[str, Any]:
    """Return an example as the files store it.

    Raises:
      ValueError: a field does not fit, or a number is too large for the stored type.
    """
    arrays = {field: example.get(field, np.zeros(shape)) for field, shape in _shapes(dims).items()}
    for field, shape in _shapes(dims).items():
        if np.shape(arrays[field]) != shape:
            raise ValueError(
                f"{field} of {example['id']} has shape {np.shape(arrays[field])}, expected {shape}"
            )
    more = example.get("more_captions", {})
    if unknown := sorted(set(more) - set(dims.more_captions)):
        raise ValueError(
            f"{example['id']} has captions from {unknown[0]!r}, which is not a source of the records"
        )
    nothing = np.zeros((0, dims.text_dim), dims.feature_dtype)
    none = {"caption": "", "text_features": nothing, "text_len": 0}
    stored: dict[str, Any] = {
        **{field: example[field] for field in TEXT_FIELDS},
        **{field: np.asarray(arrays[field], np.float32) for field in LATENT_FIELDS},
        "video_features": _narrowed(arrays["video_features"], dims, f"video_features of {example['id']}"),
        **_stored_text(example, dims, example["id"]),
        "text_length": dims.text_length,
        "has_audio": "audio_mean" in example,
        "has_video": "video_features" in example,
    }
    if dims.more_captions:
        stored["more_captions"] = {
            source: _stored_text(more[source], dims, example["id"]) if source in more else none
            for source in dims.more_captions
        }
    return stored


def _stored_text(text: Mapping[str, Any], dims: Dims, name: str) -> dict[str, Any]:
    features, shape = np.asarray(text["text_features"]), (dims.text_length, dims.text_dim)
    if features.shape != shape:
        raise ValueError(f"text_features of {name} has shape {features.shape}, expected {shape}")
    used = np.flatnonzero(features.any(axis=1))
    rows = max(int(text["text_len"]), int(used[-1]) + 1 if used.size else 0, 1)
    narrowed = _narrowed(features[:rows], dims, f"text_features of {name}")
    return {"caption": text["caption"], "text_features": narrowed, "text_len": text["text_len"]}


def _narrowed(features: np.ndarray, dims: Dims, what: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrowed = np.asarray(features).astype(dims.feature_dtype)
    if not np.isfinite(narrowed).all():
        raise ValueError(f"{what} has values that {dims.feature_dtype} cannot hold")
    return narrowed


def _shapes(dims: Dims) -> dict[str, tuple[int, int]]:
    return {
        "audio_mean": (dims.audio_length, dims.audio_dim),
        "audio_std": (dims.audio_length, dims.audio_dim),
        "video_features": (dims.video_length, dims.video_dim),
    }


def _features(dims: Dims) -> tfds.features.FeaturesDict:
    def tensor(*shape: int | None, dtype: Any = np.float32):
        # As bytes, a tensor is written ten times faster than as a list of numbers, and read just as fast.
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)

    feature_dtype, shapes = np.dtype(dims.feature_dtype).type, _shapes(dims)

    def text():
        return {
            "caption": tfds.features.Text(),
            "text_features": tensor(None, dims.text_dim, dtype=feature_dtype),
            "text_len": tfds.features.Scalar(dtype=np.int32),
        }

    more = {"more_captions": {source: text() for source in dims.more_captions}} if dims.more_captions else {}
    return tfds.features.FeaturesDict(
        {
            **{field: tensor(*shapes[field]) for field in LATENT_FIELDS},
            "video_features": tensor(*shapes["video_features"], dtype=feature_dtype),
            **text(),
            "text_length": tfds.features.Scalar(dtype=np.int32),
            "has_audio": tfds.features.Scalar(dtype=np.bool_),
            "has_video": tfds.features.Scalar(dtype=np.bool_),
            **{field: tfds.features.Text() for field in TEXT_FIELDS},
            **more,
        }
    )
