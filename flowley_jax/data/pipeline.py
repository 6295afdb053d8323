"""Batches of records, read by Grain.

The order of training examples depends only on the seed; each epoch uses a different permutation. The
iterator's state is the number of examples drawn so far, so training resumes with exactly the next batch, with
any number of workers.
"""

import functools
import os
from collections.abc import Iterator, Mapping

import grain
import grain.experimental
import numpy as np

from flowley_jax.common.worker_processes import end_with_parent
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
    """Return endless shuffled batches of a split.

    Args:
      records_dir: folder of the records.
      batch_size: examples B per batch; a batch may span the end of an epoch.
      rows: (groups, B/groups), the rows of a batch that each group of processes reads; by default one group
        reads all rows. The whole batch is the same for any grouping.
      group: number of this process's group.
      seed: seed of the order.
      num_workers: processes that read ahead; 0 reads in threads of this process.
      split: name of the split.
      feature_dtype: type of the features: float32, or the network's compute type, so that fewer bytes are
        copied to the devices.
      captions: weights of the caption sources, which are `table` and those of the records' more_captions. At
        every step, each example draws one of the sources that have a caption for it. By default only `table`.

    Returns:
      An iterator with `get_state` and `set_state` over mappings of contiguous arrays with this group's rows:
      audio_mean and audio_std (rows, Ta, C) float32; video_features (rows, Tv, video_dim) and text_features
      (rows, Tt, text_dim) of `feature_dtype`; text_len (rows,) int32; has_video (rows,) bool.

    Raises:
      FlowleyError: the records are missing or empty, or lack a caption source; or a setting is out of range.
    """
    if batch_size < 1 or num_workers < 0:
        raise FlowleyError(f"{batch_size=} must be at least 1 and {num_workers=} at least 0")
    rows = np.arange(batch_size)[None] if rows is None else rows
    source = open_records(records_dir, split)
    arrays = functools.partial(
        _arrays,
        captions=_checked_weights(captions or {TABLE_CAPTIONS: 1.0}, source[0]),
        feature_dtype=feature_dtype,
    )
    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(arrays)
    workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=_WORKER_READ_AHEAD)
    batches = grain.experimental.ElasticIterator(
        _InterleavedGroups(examples, rows),
        batch_size,
        grain.sharding.ShardOptions(group, len(rows)),
        read_options=_READ_AHEAD,
        multiprocessing_options=workers if num_workers else None,
    )
    return iter(batches)


def _checked_weights(captions: Mapping[str, float], example: Example) -> Mapping[str, float]:
    available = [TABLE_CAPTIONS, *example.get("more_captions", {})]
    for source, weight in captions.items():
        if source not in available:
            known = ", ".join(available)
            raise FlowleyError(f"captions: the records have no source {source!r}; they have {known}")
        if not 0.0 <= weight < float("inf"):
            raise FlowleyError(f"captions: weight {source}={weight} must be at least 0")
    if not sum(captions.values()):
        raise FlowleyError("captions: all weights are 0; at least one must be positive")
    return captions


def _arrays(
    example: Example, rng: np.random.Generator, *, captions: Mapping[str, float], feature_dtype: str
) -> dict[str, np.ndarray]:
    """Return the arrays of an example, with a caption of a randomly drawn source."""
    sources = [source for source in caption_sources(example) if captions.get(source)]
    if len(sources) > 1:
        weights = np.array([captions[source] for source in sources])
        sources = [rng.choice(sources, p=weights / weights.sum())]
    # An example without a caption from any weighted source keeps the table's.
    source = sources[0] if sources else TABLE_CAPTIONS
    return arrays_of(example, feature_dtype=feature_dtype, caption_source=source)


class _InterleavedGroups(grain.MapDataset):
    """Examples in the order that gives each group its rows, as `ElasticIterator` deals them out in turn."""

    def __init__(self, examples: grain.MapDataset, rows: np.ndarray):
        super().__init__(examples)
        self._rows = rows.T.ravel()

    def __setstate__(self, state):
        # Only the processes that read ahead unpickle a data set.
        vars(self).update(state)
        end_with_parent()

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, position = divmod(index, len(self._rows))
        return self._parent[batch * len(self._rows) + int(self._rows[position])]


def eval_batches(records_dir: str | os.PathLike, split: str, *, batch_size: int) -> Iterator[Batch]:
    """Return batches of one pass over a split, in the order of its records; the last one may be smaller.

    Args:
      records_dir: folder of the records.
      split: name of the split.
      batch_size: examples per batch.

    Raises:
      FlowleyError: the records are missing or empty.
    """
    if batch_size < 1:
        raise FlowleyError(f"batch_size={batch_size} must be at least 1")
    examples = grain.MapDataset.source(open_records(records_dir, split)).map(arrays_of)
    return iter(examples.batch(batch_size, drop_remainder=False).to_iter_dataset(_READ_AHEAD))
