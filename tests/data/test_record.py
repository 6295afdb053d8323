"""Records: exact round trips of any sizes without TensorFlow, and errors that name the file."""

import sys

import children
import ml_dtypes
import numpy as np
import pytest
import tiny

from flowley_jax.common.locks import lock_folder
from flowley_jax.data import record
from flowley_jax.data.dims import Dims
from flowley_jax.data.pipeline import train_batches
from flowley_jax.data.record import (
    arrays_of,
    caption_sources,
    has_records,
    has_split,
    open_records,
    write_records,
)
from flowley_jax.errors import FlowleyError


def _dims(**changes):
    sizes = dict(audio_length=5, audio_dim=3, video_length=4, video_dim=7, text_length=6, text_dim=2)
    return Dims(**{**sizes, **changes})


def _examples(dims, count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "audio_mean": rng.standard_normal((dims.audio_length, dims.audio_dim)).astype(np.float32),
            "audio_std": rng.random((dims.audio_length, dims.audio_dim)).astype(np.float32),
            "video_features": rng.standard_normal((dims.video_length, dims.video_dim)).astype(np.float32),
            "text_features": rng.standard_normal((dims.text_length, dims.text_dim)).astype(np.float32),
            "text_len": np.int32(index % 4 + 1),
            "id": f"clip-{index}",
            "caption": "ein Glöckchen klingt",
            "label": "bell",
        }
        for index in range(count)
    ]


@pytest.mark.parametrize("dims", [_dims(), _dims(audio_length=1, video_dim=1, text_length=1)])
def test_round_trip_preserves_order_and_bits(tmp_path, dims):
    written = {"train": _examples(dims, 12), "test": _examples(dims, 3, seed=1)}
    write_records(tmp_path, dims, {split: lambda rows=rows: rows for split, rows in written.items()})
    assert has_records(tmp_path)
    for split, rows in written.items():
        read = open_records(tmp_path, split)
        assert len(read) == len(rows)
        for index, row in enumerate(rows):
            assert tiny.texts_of(read[index]) == {key: row[key] for key in ("id", "caption", "label")}
            for field, values in arrays_of(read[index]).items():
                assert values.dtype == {"text_len": np.int32, "has_video": np.bool_}.get(field, np.float32)
                np.testing.assert_array_equal(values, row.get(field, True))


def test_missing_streams_are_marked_and_other_captions_are_stored(tmp_path):
    dims = _dims(more_captions=("soundcap",))
    rows = _examples(dims, 3)
    del rows[1]["video_features"]
    del rows[2]["audio_mean"], rows[2]["audio_std"]
    other = {"caption": "a thud", "text_features": rows[2]["text_features"] + 1, "text_len": np.int32(2)}
    rows[0]["more_captions"] = {"soundcap": other}
    write_records(tmp_path, dims, {"train": lambda: rows})
    first, mute, blind = (open_records(tmp_path, "train")[index] for index in (0, 2, 1))
    assert first["has_audio"] and first["has_video"] and blind["has_audio"] and mute["has_video"]
    assert not blind["has_video"] and not arrays_of(blind)["video_features"].any()
    assert not mute["has_audio"] and not arrays_of(mute)["audio_mean"].any()
    assert caption_sources(first) == ["table", "soundcap"] and caption_sources(mute) == ["table"]
    arrays = arrays_of(first, caption_source="soundcap")
    np.testing.assert_array_equal(arrays["text_features"], other["text_features"])
    assert arrays["text_len"] == 2
    np.testing.assert_array_equal(arrays_of(first)["text_features"], rows[0]["text_features"])
    rows[1]["more_captions"] = {"poems": other}
    with pytest.raises(
        FlowleyError, match="clip-1 has captions from 'poems', which is not a source of the records"
    ):
        write_records(tmp_path / "more", dims, {"train": lambda: rows})


def test_zero_rows_at_the_end_of_text_are_not_stored(tmp_path):
    dims = _dims(text_length=40, text_dim=16)
    rows = _examples(dims, 3)
    rows[0]["text_features"][5:] = 0.0
    rows[1]["text_features"][:] = 0.0
    write_records(tmp_path, dims, {"train": lambda: rows})
    read = open_records(tmp_path, "train")
    assert [len(read[index]["text_features"]) for index in range(3)] == [5, rows[1]["text_len"], 40]
    for index, row in enumerate(rows):
        np.testing.assert_array_equal(arrays_of(read[index])["text_features"], row["text_features"])


def test_split_of_several_files_preserves_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "EXAMPLES_PER_FILE", 7)
    rows = _examples(_dims(), 20)
    write_records(tmp_path, _dims(), {"train": lambda: rows})
    read = open_records(tmp_path, "train")
    assert [tiny.texts_of(read[index])["id"] for index in range(20)] == [row["id"] for row in rows]
    assert len(list(tmp_path.rglob("*array_record*"))) == 3
    assert not (tmp_path / ".partial").exists()


def test_features_can_be_stored_in_half_precision(tmp_path):
    dims = _dims(feature_dtype="float16")
    rows = _examples(dims, 2)
    write_records(tmp_path, dims, {"train": lambda: rows})
    read = open_records(tmp_path, "train")
    assert read[0]["video_features"].dtype == read[0]["text_features"].dtype == np.float16
    arrays = arrays_of(read[1], feature_dtype="bfloat16")
    np.testing.assert_array_equal(arrays["audio_mean"], rows[1]["audio_mean"])
    assert arrays["video_features"].dtype == arrays["text_features"].dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(
        arrays["text_features"].astype(np.float32), rows[1]["text_features"], rtol=2**-8, atol=1e-6
    )
    rows[1]["video_features"][0, 0] = 1e6
    with pytest.raises(FlowleyError, match="video_features of clip-1 has values that float16 cannot hold"):
        write_records(tmp_path / "more", dims, {"train": lambda: rows})


def test_example_that_does_not_fit_leaves_no_records(tmp_path):
    rows = _examples(_dims(), 2) + _examples(_dims(video_dim=8), 1)
    with pytest.raises(
        FlowleyError,
        match=r"does not fit .*: video_features of clip-0 has shape \(4, 8\), expected \(4, 7\)",
    ):
        write_records(tmp_path, _dims(), {"train": lambda: rows})
    assert not has_records(tmp_path)
    write_records(tmp_path, _dims(), {"train": lambda: rows[:2]})
    assert len(open_records(tmp_path, "train")) == 2


def test_records_are_never_overwritten(tmp_path):
    write_records(tmp_path, _dims(), {"train": lambda: _examples(_dims(), 1)})
    with pytest.raises(FlowleyError, match="already has records"):
        write_records(tmp_path, _dims(), {"train": lambda: _examples(_dims(), 2)})
    assert len(open_records(tmp_path, "train")) == 1


def test_missing_or_empty_records_are_named_in_the_error(tmp_path):
    with pytest.raises(FlowleyError, match="nowhere: no such folder"):
        open_records(tmp_path / "nowhere", "train")
    with pytest.raises(FlowleyError, match=f"{tmp_path}: has no records"):
        open_records(tmp_path, "train")
    with pytest.raises(FlowleyError, match="the split 'valid' has no examples"):
        write_records(tmp_path, _dims(), {"train": lambda: _examples(_dims(), 1), "valid": list})
    write_records(tmp_path, _dims(), {"train": lambda: _examples(_dims(), 1)})
    with pytest.raises(
        FlowleyError, match=f"{tmp_path}: split 'valid' has no examples; splits with examples: train"
    ):
        open_records(tmp_path, "valid")


def test_tensorflow_is_not_imported():
    program = "import sys, flowley_jax.data.pipeline; sys.exit('tensorflow' in sys.modules)"
    assert children.run([sys.executable, "-W", "error", "-c", program]).returncode == 0


def test_truncated_file_is_named_when_it_is_opened(tmp_path):
    records = tiny.write_records(tmp_path / "records")
    path = next(records.rglob("*train*array_record*"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FlowleyError, match="example 0 of 'train' is damaged"):
        open_records(records, "train")
    assert len(open_records(records, "test")) > 0


def test_changed_bytes_in_a_file_are_named_when_they_are_read(tmp_path):
    records = tiny.write_records(tmp_path / "records")
    path = next(records.rglob("*train*array_record*"))
    raw = bytearray(path.read_bytes())
    raw[8000] ^= 1
    path.write_bytes(raw)
    batches = train_batches(records, batch_size=2, seed=0)
    with pytest.raises(FlowleyError, match=rf"{path}: example 5 of 'train' is damaged .* --verify"):
        for _ in range(5):
            next(batches)


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path, rows = tmp_path / record.shard_name("train", 0), _examples(_dims(), 3)

    def with_another_writer():
        yield rows[0]
        # Another worker writes the same file from the beginning to the end in the meantime.
        record.write_shard(path, _dims(), rows)
        yield from rows[1:]

    assert record.write_shard(path, _dims(), with_another_writer()).examples == 3
    record.write_metadata(tmp_path, _dims(), {"train": [record.Shard(3, 1)]})
    assert {one.name for one in tmp_path.iterdir()} == {path.name, *record.METADATA_FILES}
    expected = tmp_path / "expected"
    record.write_shard(expected, _dims(), rows)
    assert path.read_bytes() == expected.read_bytes()


def test_a_shard_that_cannot_be_finished_leaves_nothing(tmp_path):
    def failing():
        yield from _examples(_dims(), 2)
        raise FlowleyError("the clip is gone")

    with pytest.raises(FlowleyError, match="the clip is gone"):
        record.write_shard(tmp_path / "a", _dims(), failing())
    assert not list(tmp_path.iterdir())


def test_one_process_at_a_time_writes_records(tmp_path):
    with lock_folder(tmp_path), pytest.raises(FlowleyError, match="another process is writing to it"):
        write_records(tmp_path, _dims(), {"train": lambda: _examples(_dims(), 1)})


@pytest.mark.parametrize("name", record.METADATA_FILES)
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"name": 5}', None])
def test_damaged_metadata_is_named(tmp_path, name, content):
    records = tiny.write_records(tmp_path, count=1)
    path = record.dataset_dir(records) / name
    if content is None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_text(content)
    for read in (record.check_metadata, lambda folder: has_split(folder, "train")):
        with pytest.raises(
            FlowleyError, match=rf"{path.parent}: dataset_info.json or features.json is damaged"
        ):
            read(records)
