"""Stored features: damage of any kind is found, keys tell files apart, and nothing temporary stays."""

import json
import os
import shutil
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from data_prep.feature_store import DamagedError, FeatureStore
from data_prep.keyed_clips import key_clips
from data_prep.record_components import RecordComponents
from data_prep.rejection import Reason, Rejection
from data_prep.settings import RecordSettings
from flowley_jax.common.files import partial_name
from flowley_jax.data.clip_table import read_clip_table

HEADER = "id\tvideo_path\ttext_description\tsplit\tlabel\n"
KEY = "0123456789"
FEATURES = {"video_features": np.arange(12, dtype=np.float32).reshape(3, 4), "text_len": np.int32(7)}
KINDS = (("media", ".npz"), ("text", ".json"))
REJECTION = Rejection(Reason.UNREADABLE, "ein Glöckchen: «nicht lesbar» 鐘")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Return a store, and the content of its file of features and of its note."""
    store = FeatureStore(str(tmp_path_factory.mktemp("features")))
    store.write("media", KEY, FEATURES)
    store.reject("text", KEY, REJECTION)
    return store, *(_path(store, kind, suffix).read_bytes() for kind, suffix in KINDS)


def _path(store, kind, suffix):
    return Path(store.folder) / kind / KEY[:2] / (KEY + suffix)


@st.composite
def _damages(draw):
    """Return a function of a file's bytes that flips some, or cuts the file."""
    share = draw(st.floats(0.0, 1.0, exclude_max=True))
    if draw(st.booleans()):
        return lambda content: content[: int(share * len(content))]
    flips = draw(st.lists(st.tuples(st.floats(0.0, 1.0, exclude_max=True), st.integers(1, 255)), min_size=1))

    def flip(content):
        changed = bytearray(content)
        for place, bits in flips:
            changed[int(place * len(changed))] ^= bits
        return bytes(changed)

    return flip


@settings(max_examples=400, deadline=None)
@given(damage=_damages())
def test_damaged_features_are_found_and_removed(stored, damage):
    store, content, _ = stored
    path = _path(store, *KINDS[0])
    path.write_bytes(damage(content))
    try:
        features = store.read("media", KEY)
    except DamagedError as error:
        assert str(error).startswith(f"{path}: was damaged (") and "\n" not in str(error)
        assert not path.exists()
        return
    # What was flipped twice is whole, and so is a file without its checksum.
    assert features.keys() == FEATURES.keys()
    for name, expected in FEATURES.items():
        np.testing.assert_array_equal(features[name], expected)


def test_features_of_earlier_versions_are_read_and_their_damage_is_found(stored):
    store = stored[0]
    path = _path(store, *KINDS[0])
    np.savez(path, **FEATURES)
    np.testing.assert_array_equal(store.read("media", KEY)["video_features"], FEATURES["video_features"])
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        store.read("media", KEY)


@settings(max_examples=200, deadline=None)
@given(damage=_damages())
def test_damaged_rejections_are_found_and_removed(stored, damage):
    store, _, note = stored
    path = _path(store, *KINDS[1])
    path.write_bytes(damage(note))
    try:
        rejection = store.rejection("text", KEY)
    except DamagedError:
        assert not path.exists()
        return
    # JSON has no checksum, but what is read can be used.
    assert rejection.reason in list(Reason) and rejection.detail == " ".join(rejection.detail.split())


@pytest.mark.parametrize(
    "value", [None, 5, [], {"reason": "silent"}, {"reason": 5, "detail": ""}, {"reason": "x", "detail": ""}]
)
def test_other_json_is_no_rejection(stored, value):
    store = stored[0]
    path = _path(store, *KINDS[1])
    path.write_text(json.dumps(value))
    with pytest.raises(DamagedError):
        store.rejection("text", KEY)


def test_files_of_other_programs_are_no_features(tmp_path):
    store = FeatureStore(str(tmp_path))
    store.write("media", KEY, FEATURES)
    folder = _path(store, *KINDS[0]).parent
    for name in (".DS_Store", "Thumbs.db", "aaaa.txt", "bbbb"):
        (folder / name).write_text("x")
    assert store.keys("media") == ({KEY}, set())


def test_partial_files_of_killed_processes_are_removed(tmp_path):
    store = FeatureStore(str(tmp_path))
    store.write("media", KEY, FEATURES)
    folder = _path(store, *KINDS[0]).parent
    (folder / partial_name()).write_bytes(b"x")
    store.remove_partials()
    assert [path.name for path in folder.iterdir()] == [f"{KEY}.npz"]


def _media_keys(table):
    components = RecordComponents(RecordSettings())
    return [clip.media_key for clip in key_clips(read_clip_table(table), table.parent, {}, components)]


def _write(path, content, time=10**9):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(time, time))


def _table(folder, *names):
    rows = "".join(f"{index}\t{name}\tx\ttrain\tx\n" for index, name in enumerate(names))
    (folder / "clips.tsv").write_text(HEADER + rows)
    return folder / "clips.tsv"


def test_files_of_equal_name_size_and_time_have_different_keys(tmp_path):
    content = bytearray(np.random.default_rng(0).bytes(200_000))
    _write(tmp_path / "dog/0001.avi", content)
    # Even without a different byte, another path is another file.
    _write(tmp_path / "cat/0001.avi", content)
    dog, cat = _media_keys(_table(tmp_path, "dog/0001.avi", "cat/0001.avi"))
    assert dog != cat
    # In one place, the content tells files apart, wherever it differs by 32 KiB or more.
    for start in range(0, len(content), 32_768):
        changed = bytearray(content)
        changed[start : start + 32_768] = bytes(len(changed[start : start + 32_768]))
        _write(tmp_path / "dog/0001.avi", changed)
        assert _media_keys(_table(tmp_path, "dog/0001.avi"))[0] != dog
    _write(tmp_path / "dog/0001.avi", content)
    assert _media_keys(_table(tmp_path, "dog/0001.avi")) == [dog]
    _write(tmp_path / "dog/0001.avi", content, time=2 * 10**9)
    assert _media_keys(_table(tmp_path, "dog/0001.avi")) != [dog]


def test_keys_stay_when_the_table_and_the_clips_move_together(tmp_path):
    _write(tmp_path / "a/dog/0001.avi", b"dog")
    _write(tmp_path / "elsewhere/0002.avi", b"cat")
    names = "dog/0001.avi", str(tmp_path / "elsewhere/0002.avi")
    keys = _media_keys(_table(tmp_path / "a", *names))
    # Another mount point of the files that are not below the table changes nothing either.
    shutil.copytree(tmp_path / "a", tmp_path / "mnt/b")
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "mnt/elsewhere")
    names = names[0], str(tmp_path / "mnt/elsewhere/0002.avi")
    assert _media_keys(_table(tmp_path / "mnt/b", *names)) == keys


def test_a_pipe_among_the_clips_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert len(_media_keys(_table(tmp_path, "pipe.mp4", "missing.mp4"))) == 2
