"""The schema of a training example, stored as a TFDS dataset in ArrayRecord files without TensorFlow.

| field | shape |
|---|---|
| audio_mean, audio_std | (Ta, audio_dim) float32, posterior of the audio codec |
| video_features | (Tv, video_dim) float32 or float16 |
| text_features | (≤ Tt, text_dim) the same; rows of zeros at the end are left out |
| text_length | int32, Tt |
| text_len | int32, tokens that are not padding |
| id, caption, label | text |
| has_audio, has_video | bool; latents, or features of the video, are zeros where it is false |
| more_captions/<source> | caption, text_features and text_len of another source; text_len is 0 without one |

Rows of padding that are not zero are kept: the published network reads them.
"""

import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.core.splits import SplitDict

from flowley_jax.errors import FlowleyError

_NAME = "clip_records"
_VERSION = "3.0.0"
_PARTIAL = ".partial"
# About half a gigabyte of the published sizes.
EXAMPLES_PER_FILE = 1000
LATENT_FIELDS = ("audio_mean", "audio_std")
FEATURE_FIELDS = ("video_features", "text_features")
TEXT_FIELDS = ("id", "caption", "label")
# The source of the captions that every example has.
TABLE_CAPTIONS = "table"

Example = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dims:
    """Lengths and widths of one example, Ta, Tv, Tt and their feature widths, the features' type, and sources
    of captions besides the clip table."""

    audio_length: int
    audio_dim: int
    video_length: int
    video_dim: int
    text_length: int
    text_dim: int
    feature_dtype: Literal["float32", "float16"] = "float32"
    more_captions: tuple[str, ...] = ()


class _ClipRecords(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Describes the data set; its examples are written by hand."""

    name = _NAME
    VERSION = tfds.core.Version(_VERSION)

    def __init__(self, *, dims: Dims, data_dir: str):
        self._dims = dims
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
        raise NotImplementedError("TFDS's own way to write needs TensorFlow beyond 1 GB")

    _generate_examples = _split_generators


class Shard(NamedTuple):
    """What the description of a data set says of one of its files: examples, and bytes of these."""

    examples: int
    size: int


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
    partial = records_dir / _PARTIAL
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        shards = {
            split: [
                write_shard(partial / shard_name(split, index), dims, some)
                for index, some in enumerate(_chunks(examples()))
            ]
            for split, examples in splits.items()
        }
        describe(partial, dims, shards)
        target = dataset_dir(records_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(target)
    except OSError as error:
        raise FlowleyError(f"{records_dir}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_shard(path: Path, dims: Dims, examples: Iterable[Example]) -> Shard:
    """Writes one file of a dataset.

    Args:
      examples: with the fields that are listed above, but for text_length, has_audio and has_video; without
        audio_mean and audio_std, or video_features, where there is no sound or picture; more_captions are
        mappings of what each source has.

    Raises:
      FlowleyError: naming the file, if an example does not fit or the disk is full.
    """
    features = _features(dims)
    # It takes what the features give; its annotation is narrower.
    serializer = example_serializer.ExampleSerializer(
        features.get_serialized_info()  # pyright: ignore[reportArgumentType]
    )
    count = size = 0
    try:
        # A group for each example, so that one is read alone.
        writer = ArrayRecordWriter(str(path), "group_size:1")
        try:
            for example in examples:
                proto = serializer.get_tf_example(features.encode_example(_stored(example, dims)))
                # The same examples give the same file in every process.
                content = proto.SerializeToString(deterministic=True)
                writer.write(content)
                count, size = count + 1, size + len(content)
        finally:
            writer.close()
    except ValueError as error:
        raise FlowleyError(f"{path}: the examples do not fit the records: {error}") from error
    except (OSError, RuntimeError) as error:
        raise FlowleyError(
            f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}"
        ) from error
    return Shard(count, size)


def shard_name(split: str, index: int) -> str:
    """Of a file of a split, as TFDS looks for it."""
    return f"{_NAME}-{split}.array_record-{index:05d}"


def describe(folder: Path, dims: Dims, shards: Mapping[str, Sequence[Shard]]) -> None:
    """Writes the description of a dataset whose files are made.

    Raises:
      FlowleyError: if a split has no example.
    """
    builder = _ClipRecords(dims=dims, data_dir=str(folder))
    splits = []
    for split, members in shards.items():
        if not sum(shard.examples for shard in members):
            raise FlowleyError(f"{folder}: the split {split!r} has no example")
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
    builder.info.set_splits(SplitDict(splits))
    builder.info.write_to_directory(str(folder))


def _chunks(examples: Iterable[Example]) -> Iterator[Iterator[Example]]:
    """A file's examples each; one is to be exhausted before the next is asked for."""
    rest = iter(examples)
    for first in rest:
        yield itertools.chain([first], itertools.islice(rest, EXAMPLES_PER_FILE - 1))


def has_records(records_dir: str | os.PathLike) -> bool:
    """Whether `records_dir` holds a finished dataset."""
    return (dataset_dir(records_dir) / "dataset_info.json").is_file()


def open_records(records_dir: str | os.PathLike, split: str) -> Sequence[Example]:
    """Random access to the examples of a split, as mappings of NumPy arrays and bytes.

    Raises:
      FlowleyError: if there are no records, no such split or no example in it; also when an example is asked
        for that is damaged, as the first one is at once.
    """
    if not Path(records_dir).is_dir():
        raise FlowleyError(f"{records_dir}: no such folder of records")
    if not has_records(records_dir):
        raise FlowleyError(f"{records_dir}: has no records ({_NAME}/{_VERSION} is missing or unfinished)")
    builder = tfds.builder_from_directory(str(dataset_dir(records_dir)))
    filled = [name for name, info in builder.info.splits.items() if info.num_examples]
    if split not in filled:
        raise FlowleyError(f"{records_dir}: no examples in split {split!r}; there are {', '.join(filled)}")
    examples = _Examples(builder.as_data_source(split), dataset_dir(records_dir), split)  # pyright: ignore[reportCallIssue]
    # The files are opened by the first reading, which would otherwise be in the middle of a run.
    examples[0]
    return examples


class _Examples(Sequence[Example]):
    """Names the records that cannot be read."""

    def __init__(self, source: Sequence[Example], folder: Path, split: str):
        self._source, self._folder, self._split = source, folder, split

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return self._source[index]
        except (RuntimeError, OSError, ValueError) as error:
            raise FlowleyError(
                f"{self._folder}: example {index} of {self._split!r} is damaged ({error}); remove that "
                "folder and make the records again"
            ) from error


def has_split(records_dir: str | os.PathLike, split: str) -> bool:
    """Whether the records have an example in a split."""
    builder = tfds.builder_from_directory(str(dataset_dir(records_dir)))
    return split in builder.info.splits and builder.info.splits[split].num_examples > 0


def arrays_of(
    example: Example, *, feature_dtype: str = "float32", captions: str = TABLE_CAPTIONS
) -> dict[str, np.ndarray]:
    """The numerical fields, which batches are made of: latents in float32, text padded with zeros.

    Args:
      captions: source of the text.
    """
    text = example if captions == TABLE_CAPTIONS else example["more_captions"][captions]
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
    """Sources that have a caption for an example."""
    more = example.get("more_captions", {})
    return [TABLE_CAPTIONS, *(source for source, text in more.items() if text["text_len"] > 0)]


def texts_of(example: Example) -> dict[str, str]:
    """The fields id, caption and label as text."""
    return {field: example[field].decode() for field in TEXT_FIELDS}


def dataset_dir(records_dir: str | os.PathLike) -> Path:
    """Where the dataset of a folder of records lies."""
    return Path(records_dir) / _NAME / _VERSION


def _stored(example: Example, dims: Dims) -> dict[str, Any]:
    """An example as the files hold it.

    Raises:
      ValueError: it does not fit, or a number is too large for the features' type.
    """
    arrays = {field: example.get(field, np.zeros(shape)) for field, shape in _shapes(dims).items()}
    for field, shape in _shapes(dims).items():
        if np.shape(arrays[field]) != shape:
            raise ValueError(f"{field} of {example['id']} is {np.shape(arrays[field])}, and must be {shape}")
    more = example.get("more_captions", {})
    if unknown := sorted(set(more) - set(dims.more_captions)):
        raise ValueError(f"{example['id']} has captions of {unknown[0]!r}, which the records do not have")
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
        raise ValueError(f"text_features of {name} is {features.shape}, and must be {shape}")
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
        # As bytes: ten times faster to write than as a list of numbers, and as fast to read.
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)

    kept, shapes = np.dtype(dims.feature_dtype).type, _shapes(dims)

    def text():
        return {
            "caption": tfds.features.Text(),
            "text_features": tensor(None, dims.text_dim, dtype=kept),
            "text_len": tfds.features.Scalar(dtype=np.int32),
        }

    more = {"more_captions": {source: text() for source in dims.more_captions}} if dims.more_captions else {}
    return tfds.features.FeaturesDict(
        {
            **{field: tensor(*shapes[field]) for field in LATENT_FIELDS},
            "video_features": tensor(*shapes["video_features"], dtype=kept),
            **text(),
            "text_length": tfds.features.Scalar(dtype=np.int32),
            "has_audio": tfds.features.Scalar(dtype=np.bool_),
            "has_video": tfds.features.Scalar(dtype=np.bool_),
            **{field: tfds.features.Text() for field in TEXT_FIELDS},
            **more,
        }
    )
