"""Batches of records, read by Grain.

The order of training is a function of the seed alone: epoch after epoch, each a permutation of its own. The
iterator's state is the number of examples drawn so far, so that training resumes on exactly the next batch,
with any number of workers.
"""

import os
from collections.abc import Iterator

import grain
import grain.experimental
import numpy as np

from flowley_jax.data.record import arrays_of, open_records
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
    num_workers: int = 0,
    split: str = "train",
) -> grain.DatasetIterator:
    """Endless shuffled batches of a split.

    Args:
      records_dir: folder of the records.
      batch_size: examples in each batch B; a batch may span the end of an epoch.
      seed: of the order.
      num_workers: processes that read ahead; 0 reads in threads of this one.
      split: usually train.

    Returns:
      An iterator with `get_state` and `set_state` over mappings of contiguous arrays: audio_mean and
      audio_std (B, Ta, C), video_features (B, Tv, video_dim), text_features (B, Tt, text_dim) float32 and
      text_len (B,) int32.

    Raises:
      FlowleyError: if the records are missing or empty, or a setting is impossible.
    """
    if batch_size < 1 or num_workers < 0:
        raise FlowleyError(f"{batch_size=} must be at least 1 and {num_workers=} at least 0")
    source = open_records(records_dir, split)
    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat().map(arrays_of)
    workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=_WORKER_READ_AHEAD)
    batches = grain.experimental.ElasticIterator(
        examples,
        batch_size,
        grain.sharding.NoSharding(),
        read_options=_READ_AHEAD,
        multiprocessing_options=workers if num_workers else None,
    )
    return iter(batches)


def eval_batches(records_dir: str | os.PathLike, split: str, *, batch_size: int) -> Iterator[Batch]:
    """One pass over a split in the order of its records; the last batch may be smaller.

    Raises:
      FlowleyError: if the records are missing or empty.
    """
    if batch_size < 1:
        raise FlowleyError(f"batch_size={batch_size} must be at least 1")
    examples = grain.MapDataset.source(open_records(records_dir, split)).map(arrays_of)
    return iter(examples.batch(batch_size, drop_remainder=False).to_iter_dataset(_READ_AHEAD))
