"""Batches of records, read by Grain.

The order of training is a function of the seed alone: epoch after epoch, each a permutation of its own. The
iterator's state is the number of examples drawn so far, so that training resumes on exactly the next batch,
with any number of workers.
"""

import functools
import os
from collections.abc import Iterator, Mapping

import grain
import grain.experimental
import numpy as np

from flowley_jax.data.record import TABLE_CAPTIONS, Example, arrays_of, caption_sources, open_records
from flowley_jax.errors import FlowleyError

Batch = dict[str, np.ndarray]

# Grain's defaults keep 500 batches in memory.
_READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
_WORKER_READ_AHEAD = 2


def train_batches(
    records_dir: str | os.PathLike,
    *,
    batch_size: int,
    seed: int,
    rows: np.ndarray | None = None,
    group: int = 0,
    num_workers: int = 0,
    split: str = "train",
    feature_dtype: str = "float32",
    captions: Mapping[str, float] | None = None,
) -> grain.DatasetIterator:
    """Endless shuffled batches of a split.

    Args:
      records_dir: folder of the records.
      batch_size: examples in each batch B; a batch may span the end of an epoch.
      rows: (groups, B/groups) which rows of a batch each group of processes reads; by default one group
        reads all. The batch as a whole is the same for any groups.
      group: of this process.
      seed: of the order.
      num_workers: processes that read ahead; 0 reads in threads of this one.
      split: usually train.
      feature_dtype: float32, or the type in which the network computes, so that no more is moved.
      captions: weights of the sources of captions, `table` and those of the records' more_captions; at every
        step each example draws among those that have a caption for it. By default `table` alone.

    Returns:
      An iterator with `get_state` and `set_state` over this group's rows as mappings of contiguous arrays:
      audio_mean and audio_std (rows, Ta, C), video_features (rows, Tv, video_dim), text_features (rows, Tt,
      text_dim) of `feature_dtype`, the others float32, text_len (rows,) int32 and has_video (rows,) bool.

    Raises:
      FlowleyError: if the records are missing or empty, lack a source of captions, or a setting is
        impossible.
    """
    if batch_size < 1 or num_workers < 0:
        raise FlowleyError(f"{batch_size=} must be at least 1 and {num_workers=} at least 0")
    rows = np.arange(batch_size)[None] if rows is None else rows
    source = open_records(records_dir, split)
    arrays = functools.partial(
        _arrays, captions=_checked(captions or {TABLE_CAPTIONS: 1.0}, source[0]), feature_dtype=feature_dtype
    )
    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(arrays)
    workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=_WORKER_READ_AHEAD)
    batches = grain.experimental.ElasticIterator(
        _ByGroups(examples, rows),
        batch_size,
        grain.sharding.ShardOptions(group, len(rows)),
        read_options=_READ_AHEAD,
        multiprocessing_options=workers if num_workers else None,
    )
    return iter(batches)


def _checked(captions: Mapping[str, float], example: Example) -> Mapping[str, float]:
    there = [TABLE_CAPTIONS, *example.get("more_captions", {})]
    for source, weight in captions.items():
        if source not in there:
            raise FlowleyError(f"captions: the records have none of {source!r}; they have {', '.join(there)}")
        if not 0.0 <= weight < float("inf"):
            raise FlowleyError(f"captions: the weight of {source!r} is {weight}, and must be at least 0")
    if not sum(captions.values()):
        raise FlowleyError("captions: all weights are 0")
    return captions


def _arrays(
    example: Example, rng: np.random.Generator, *, captions: Mapping[str, float], feature_dtype: str
) -> dict[str, np.ndarray]:
    """The arrays of an example, with a caption of a source that is drawn."""
    present = [source for source in caption_sources(example) if captions.get(source)]
    if len(present) > 1:
        weights = np.array([captions[source] for source in present])
        present = [rng.choice(present, p=weights / weights.sum())]
    # One that has no caption of a source that is asked for keeps the table's.
    source = present[0] if present else TABLE_CAPTIONS
    return arrays_of(example, feature_dtype=feature_dtype, captions=source)


class _ByGroups(grain.MapDataset):
    """Examples in the order in which `ElasticIterator` deals them out, one to each group in turn."""

    def __init__(self, examples: grain.MapDataset, rows: np.ndarray):
        super().__init__(examples)
        self._rows = rows.T.ravel()

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, len(self._rows))
        return self._parent[batch * len(self._rows) + int(self._rows[place])]


def eval_batches(records_dir: str | os.PathLike, split: str, *, batch_size: int) -> Iterator[Batch]:
    """One pass over a split in the order of its records; the last batch may be smaller.

    Raises:
      FlowleyError: if the records are missing or empty.
    """
    if batch_size < 1:
        raise FlowleyError(f"batch_size={batch_size} must be at least 1")
    examples = grain.MapDataset.source(open_records(records_dir, split)).map(arrays_of)
    return iter(examples.batch(batch_size, drop_remainder=False).to_iter_dataset(_READ_AHEAD))
