"""The folder of the records: damage is found and mended, and files of other programs are left alone."""

import dataclasses
import json
import shutil
import tempfile

import pytest
import shell
import unusable
from apache_beam.options.pipeline_options import PipelineOptions

from data_prep.beam_runner import DEFAULT_OPTIONS, check_options
from data_prep.record_files import ShardTask, _is_written
from data_prep.records import RunOptions, prepare_records
from data_prep.records_manifest import read_manifest
from flowley_jax.common.files import partial_name
from flowley_jax.common.locks import lock_folder
from flowley_jax.data.record import open_records
from flowley_jax.errors import FlowleyError

SETTINGS = dataclasses.replace(unusable.SETTINGS, latent_dim=2)
RUN = RunOptions(decoders=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a table of two clips and their records, with the features elsewhere."""
    folder = tmp_path_factory.mktemp("clips")
    rows = [(f"鐘{split}", f"{split}.mp4", "ein Glöckchen 鐘", split, "鐘") for split in ("train", "test")]
    for seed, row in enumerate(rows):
        unusable.write_clip(folder / row[1], seed)
    table = unusable.write_table(folder, rows)
    run = dataclasses.replace(RUN, features=str(folder / "features"))
    return table, folder / "records", run, prepare_records(table, folder / "records", SETTINGS, run)


@pytest.fixture
def again(made, tmp_path):
    """Return a copy of the records' folder, and a function that makes its records again."""
    table, records, run, _ = made
    out = shutil.copytree(records, tmp_path / "out")
    return out, lambda **changes: prepare_records(table, out, SETTINGS, dataclasses.replace(run, **changes))


def test_a_manifest_cut_at_any_byte_is_no_obstacle(made, again):
    out, prepare = again
    path = out / "manifest.json"
    content = path.read_bytes()
    for length in (*range(0, len(content) - 1, 41), len(content) - 2):
        path.write_bytes(content[:length])
        assert read_manifest(out) is None
    assert prepare() == made[3]
    assert path.read_bytes() == content


def test_a_kill_just_before_the_manifest_is_written_is_no_obstacle(made, again, capsys):
    out, prepare = again
    (out / "manifest.json").unlink()
    assert prepare() == made[3]
    assert "2 of 2 clips have already been read" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["dataset_info.json", "features.json", "clip_records-test.array_record-00000"]
)
@pytest.mark.parametrize("damage", ["cut", "empty", "missing"])
def test_damaged_files_of_the_data_set_are_named_and_written_again(made, again, name, damage, capsys):
    out, prepare = again
    path = out / "clip_records/3.0.0" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    if damage != "missing" or name == "features.json":
        with pytest.raises(FlowleyError, match=rf"{out}/.*(dataset_info\.json|{name})"):
            open_records(out, "test")
    assert prepare() == made[3]
    assert "written again" in capsys.readouterr().out or (damage == "missing" and name == "dataset_info.json")
    assert path.read_bytes() == content


def test_changed_bytes_of_the_same_size_are_found_when_asked_for(made, again, capsys):
    out, prepare = again
    path = out / "clip_records/3.0.0/clip_records-test.array_record-00000"
    content = bytearray(path.read_bytes())
    place = 1000
    content[place] ^= 4
    path.write_bytes(content)
    with pytest.raises(FlowleyError, match=rf"{path}: example 0 of 'test' is damaged"):
        open_records(out, "test")
    prepare()
    assert "already exist" in capsys.readouterr().out and path.read_bytes() == content
    assert prepare(verify=True) == made[3]
    assert f"{path}: its content has changed; the records are written again" in capsys.readouterr().out
    content[place] ^= 4
    assert path.read_bytes() == content
    prepare(verify=True)
    assert "already exist" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", '{"name": "a web page", "icons": []}'),
        ("manifest.json", "not JSON"),
        ("components.json", "{}"),
        ("codec.npz", "mine"),
        ("rejected.tsv", "id\tmy own notes\n"),
        ("clip_records/3.0.0/film.mp4", "mine"),
    ],
)
def test_files_of_other_programs_are_not_replaced(made, tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    (tmp_path / "notes.txt").write_text("mine")
    before = shell.tree(tmp_path)
    with pytest.raises(
        FlowleyError, match=rf"{tmp_path}/.*: data_prep.extract did not write it.*another folder"
    ):
        prepare_records(made[0], tmp_path, SETTINGS, made[2])
    after = shell.tree(tmp_path)
    assert after == before


def test_files_beside_the_records_are_kept(made, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert prepare_records(made[0], tmp_path, SETTINGS, made[2])["files"] == made[3]["files"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_killed_processes_left_is_removed(made, again):
    out, prepare = again
    features = made[0].parent / "features"
    left = [out / partial_name(".json"), next(features.glob("media/*")) / partial_name()]
    for path in left:
        path.write_bytes(b"half")
    prepare()
    assert not any(path.exists() for path in left)


def test_one_process_at_a_time_writes_to_a_folder_of_features(made, tmp_path):
    with (
        lock_folder(made[0].parent / "features"),
        pytest.raises(FlowleyError, match="features: another process"),
    ):
        prepare_records(made[0], tmp_path, SETTINGS, made[2])


def test_no_temporary_files_stay(made, tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    check_options(PipelineOptions(list(DEFAULT_OPTIONS)))
    prepare_records(made[0], tmp_path / "out", SETTINGS, RUN)
    assert list(temporary.iterdir()) == []


def test_the_note_of_a_file_survives_being_cut_at_any_byte(tmp_path):
    task = ShardTask("test", 0, ())
    (tmp_path / task.name).write_bytes(b"12345")
    note = tmp_path / f".{task.name}.json"
    content = json.dumps({"examples": 1, "bytes": 5, "size": 5, "sha256": "é"}).encode()
    for length in range(len(content)):
        note.write_bytes(content[:length])
        assert not _is_written(tmp_path, task)
    note.write_bytes(content)
    assert _is_written(tmp_path, task)
    (tmp_path / task.name).write_bytes(b"1234")
    assert not _is_written(tmp_path, task)
