"""Batches of records: exact resume, order of training and evaluation, captions, and errors."""

import dataclasses
import itertools

import ml_dtypes
import numpy as np
import pytest
from absl import flags

from flowley_jax.data.dims import Dims
from flowley_jax.data.pipeline import eval_batches, train_batches
from flowley_jax.data.record import write_records
from flowley_jax.errors import FlowleyError

COUNT = 10
DIMS = Dims(audio_length=5, audio_dim=3, video_length=4, video_dim=7, text_length=6, text_dim=2)


def _example(index):
    """Return an example whose entries all equal its index."""
    return {
        "audio_mean": np.full((5, 3), index, np.float32),
        "audio_std": np.full((5, 3), index, np.float32),
        "video_features": np.full((4, 7), index, np.float32),
        "text_features": np.full((6, 2), index, np.float32),
        "text_len": np.int32(index),
        "id": str(index),
        "caption": "",
        "label": "",
    }


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    write_records(
        folder,
        DIMS,
        {"train": lambda: map(_example, range(COUNT)), "valid": lambda: map(_example, range(COUNT))},
    )
    return folder


def _order(batches, count):
    return np.concatenate([batch["text_len"] for batch in itertools.islice(batches, count)])


def test_batches_are_contiguous_arrays_of_complete_examples(records):
    batch = next(train_batches(records, batch_size=4, seed=0))
    shapes = {key: value.shape for key, value in batch.items()}
    assert shapes == {
        "audio_mean": (4, 5, 3),
        "audio_std": (4, 5, 3),
        "video_features": (4, 4, 7),
        "text_features": (4, 6, 2),
        "text_len": (4,),
        "has_video": (4,),
    }
    for key, value in batch.items():
        assert value.flags.c_contiguous
        assert value.dtype == {"text_len": np.int32, "has_video": np.bool_}.get(key, np.float32)
        rows = value.reshape(4, -1)
        expected = True if key == "has_video" else batch["text_len"][:, None]
        np.testing.assert_array_equal(rows, np.broadcast_to(expected, rows.shape))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_features_have_the_compute_type_of_the_network(records, num_workers):
    batches = train_batches(records, batch_size=4, seed=0, feature_dtype="bfloat16", num_workers=num_workers)
    batch, exact = next(batches), next(train_batches(records, batch_size=4, seed=0))
    for name, values in batch.items():
        is_feature = name in ("video_features", "text_features")
        assert values.dtype == (ml_dtypes.bfloat16 if is_feature else exact[name].dtype)
        np.testing.assert_array_equal(values.astype(np.float32), exact[name])


def test_every_epoch_is_a_different_permutation(records):
    order = _order(train_batches(records, batch_size=4, seed=3), 10).reshape(4, COUNT)
    for epoch in order:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in order}) == 4


def test_order_depends_only_on_the_seed(records):
    first, again, other = (_order(train_batches(records, batch_size=4, seed=s), 5) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("drawn", [0, 1, 3, 7])
def test_resume_is_exact(records, drawn):
    batches = train_batches(records, batch_size=4, seed=0)
    for _ in range(drawn):
        next(batches)
    state = batches.get_state()
    expected = _order(batches, 6)
    resumed = train_batches(records, batch_size=4, seed=0)
    next(resumed)
    resumed.set_state(state)
    np.testing.assert_array_equal(_order(resumed, 6), expected)


def test_number_of_workers_does_not_change_order_or_state(records):
    # Grain's workers read flags, which the entry point of a program parses.
    flags.FLAGS.mark_as_parsed()
    single = train_batches(records, batch_size=4, seed=0)
    parallel = train_batches(records, batch_size=4, seed=0, num_workers=2)
    try:
        np.testing.assert_array_equal(_order(parallel, 5), _order(single, 5))
        assert parallel.get_state() == single.get_state()
    finally:
        parallel.close()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_of_processes_together_read_the_same_batches(records, groups):
    """Each group has every `groups`-th row, before and after a resume."""
    rows = np.arange(4).reshape(-1, groups).T
    expected = _order(train_batches(records, batch_size=4, seed=5), 6).reshape(6, 4)
    for group in range(groups):
        batches = train_batches(records, batch_size=4, seed=5, rows=rows, group=group)
        first = [next(batches)["text_len"] for _ in range(3)]
        resumed = train_batches(records, batch_size=4, seed=5, rows=rows, group=group)
        resumed.set_state(batches.get_state())
        later = [next(resumed)["text_len"] for _ in range(3)]
        np.testing.assert_array_equal(np.stack(first + later), expected[:, rows[group]])


def test_evaluation_reads_every_example_once_in_order(records):
    batches = list(eval_batches(records, "valid", batch_size=4))
    assert [len(batch["text_len"]) for batch in batches] == [4, 4, 2]
    assert _order(iter(batches), 3).tolist() == list(range(COUNT))


def test_invalid_settings_and_missing_records_are_refused(records, tmp_path):
    with pytest.raises(FlowleyError, match=str(tmp_path)):
        train_batches(tmp_path, batch_size=1, seed=0)
    with pytest.raises(FlowleyError, match="'test'"):
        eval_batches(records, "test", batch_size=1)
    with pytest.raises(FlowleyError, match="batch_size=0"):
        train_batches(records, batch_size=0, seed=0)
    with pytest.raises(FlowleyError, match="batch_size=0"):
        eval_batches(records, "valid", batch_size=0)


def _with_other_captions(index):
    example = _example(index)
    if index != 3:
        other = {"caption": "x", "text_features": -np.ones((6, 2), np.float32), "text_len": np.int32(5)}
        example["more_captions"] = {"soundcap": other}
    return example


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Records whose examples, except one, have a different caption of length 5."""
    folder = tmp_path_factory.mktemp("captioned")
    dims = dataclasses.replace(DIMS, more_captions=("soundcap",))
    write_records(folder, dims, {"train": lambda: map(_with_other_captions, range(COUNT))})
    return folder


def test_caption_sources_are_drawn_by_their_weights(captioned):
    def lengths(weights, seed=0, steps=50):
        batches = train_batches(captioned, batch_size=COUNT, seed=seed, captions=weights)
        rows = [(b["audio_mean"][:, 0, 0], b["text_len"]) for b in itertools.islice(batches, steps)]
        return np.concatenate([np.stack(row, axis=1) for row in rows])

    drawn = lengths({"table": 1.0, "soundcap": 3.0})
    others = drawn[:, 0] != 5
    has_both = others & (drawn[:, 0] != 3)
    share = (drawn[has_both, 1] == 5).mean()
    # Five standard deviations of 400 draws.
    assert abs(share - 0.75) < 0.11
    np.testing.assert_array_equal(drawn[drawn[:, 0] == 3, 1], 3)
    np.testing.assert_array_equal(drawn, lengths({"table": 1.0, "soundcap": 3.0}))
    assert (drawn[:, 1] != lengths({"table": 1.0, "soundcap": 3.0}, seed=1)[:, 1]).any()
    only_other = lengths({"soundcap": 1.0}, steps=2)
    np.testing.assert_array_equal(only_other[:, 1], np.where(only_other[:, 0] == 3, 3, 5))
    table = lengths(None, steps=2)
    np.testing.assert_array_equal(table[:, 1], table[:, 0])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"poems": 1.0}, "the records have no source 'poems'; they have table, soundcap"),
        ({"soundcap": -1.0}, "weight soundcap=-1.0 must be at least 0"),
        ({"soundcap": 0.0}, "all weights are 0"),
    ],
)
def test_invalid_caption_weights_are_refused(captioned, weights, message):
    with pytest.raises(FlowleyError, match=message):
        train_batches(captioned, batch_size=2, seed=0, captions=weights)
