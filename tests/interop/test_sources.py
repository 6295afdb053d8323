"""Published weights in files, in folders and on the Hugging Face hub."""

import errno
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.numpy import save_file

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.sources import find_weights, read_settings
from flowley_jax.interop.weight_files import read_arrays, write_arrays


def _touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


def test_settings_and_tokenizer_of_a_folder_are_found(tmp_path):
    _touch(tmp_path, "model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json", "README.md")
    (tmp_path / "config.json").write_text('{"d_model": 8}')
    weights = find_weights(str(tmp_path))
    assert weights.path == tmp_path / "model.safetensors" and weights.files == (weights.path,)
    assert read_settings(weights.settings_file("t5")) == {"d_model": 8}
    assert [path.name for path in weights.tokenizer_files("t5")] == ["tokenizer.json"]


def test_settings_of_open_clip_take_precedence(tmp_path):
    _touch(tmp_path, "open_clip_pytorch_model.bin", "config.json")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    weights = find_weights(str(tmp_path))
    assert weights.settings_file("clip").name == "open_clip_config.json"
    # That file does not describe a model of a different format in the same folder.
    assert weights.settings_file("t5").name == "config.json"


def test_ignored_files_of_a_folder_are_logged(tmp_path, caplog):
    _touch(tmp_path, "model.safetensors", "v1-16.pth", "model-00001-of-00002.safetensors")
    with caplog.at_level("INFO", logger="flowley_jax"):
        assert find_weights(str(tmp_path)).path.name == "model.safetensors"
    assert "reading model.safetensors and ignoring v1-16.pth" in caplog.text


@pytest.mark.parametrize("name", ["downloads/v1-16.pth", "./model", "existing/model"])
def test_missing_path_is_not_looked_up_on_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "existing").mkdir()
    with pytest.raises(FlowleyError, match=r"no such file or folder$"):
        find_weights(name)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "holds no weight file; give the path"),
        (("a.pth", "b.pth"), r"several weight files \(a\.pth, b\.pth\); give the path of the file"),
    ],
)
def test_ambiguous_and_empty_folders_are_refused(tmp_path, names, message):
    with pytest.raises(FlowleyError, match=message):
        find_weights(str(_touch(tmp_path / "x", *names)))


def test_missing_shards_are_named_in_the_error(tmp_path):
    _touch(tmp_path, "model-00001-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    with pytest.raises(FlowleyError, match=r"1 of 2 files are missing: model-00002-of-00002\.safetensors"):
        find_weights(str(tmp_path))


def test_name_of_neither_path_nor_repository_is_refused(tmp_path):
    with pytest.raises(FlowleyError, match=r"no such file or folder$"):
        find_weights(str(tmp_path / "none.pth"))


class _Hub:
    """A hub with one repository, or one that cannot be reached."""

    def __init__(self, folder=None, error=None):
        self.folder, self.error = folder, error

    def list_repo_files(self, repository):
        if self.error:
            raise self.error
        return sorted(path.name for path in self.folder.iterdir())


def test_only_needed_files_are_downloaded(tmp_path, monkeypatch):
    folder = _touch(
        tmp_path / "hub",
        "model.safetensors",
        "tf_model.h5",
        "pytorch_model.bin",
        "config.json",
        "tokenizer.json",
    )
    patterns = []
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: _Hub(folder))
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, allow_patterns: patterns.append(allow_patterns) or str(folder),
    )
    assert find_weights("someone/some-model").path == folder / "model.safetensors"
    assert patterns == [["model.safetensors", "config.json", "tokenizer.json"]]


def test_files_to_download_are_named_when_the_hub_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: _Hub(error=ConnectionError("no route")))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(FlowleyError) as caught:
        find_weights("google/flan-t5-large")
    for text in (
        "cannot be reached",
        "huggingface.co/google/flan-t5-large",
        "model.safetensors",
        "spiece.model",
        "--source",
    ):
        assert text in str(caught.value)


def test_earlier_download_is_used_when_the_hub_cannot_be_reached(tmp_path, monkeypatch):
    folder = _touch(tmp_path / "cache", "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: _Hub(error=ConnectionError("no route")))
    cached = {"model.safetensors": str(folder / "model.safetensors")}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, name: cached.get(name))
    assert find_weights("google/flan-t5-large").path.parent == folder


def test_hidden_weight_files_are_ignored(tmp_path):
    _touch(tmp_path, "._v1-16.pth", ".partial-0123456789abcdef.pth", "v1-16.pth")
    assert find_weights(str(tmp_path)).path.name == "v1-16.pth"


def test_empty_source_is_not_the_working_directory():
    with pytest.raises(FlowleyError, match="--source='' must name a file"):
        find_weights("")


def test_full_disk_is_not_taken_for_a_missing_connection(monkeypatch):
    error = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: _Hub(error=error))
    with pytest.raises(FlowleyError, match=r"google/flan-t5-large: cannot be downloaded \(No space left"):
        find_weights("google/flan-t5-large")


def test_repository_with_conditions_says_where_to_accept_them(monkeypatch):
    error = GatedRepoError.__new__(GatedRepoError)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: _Hub(error=error))
    with pytest.raises(FlowleyError, match=r"accept its conditions; do so at https://huggingface\.co/a/b"):
        find_weights("a/b")


def test_missing_repository_is_named_in_the_error(monkeypatch):
    # The constructor needs a response object of the HTTP client.
    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: _Hub(error=error))
    with pytest.raises(FlowleyError, match="no such repository on the hub"):
        find_weights("nobody/nothing")


@pytest.mark.parametrize("name", ["A.SAFETENSORS", "a.PTH", "model.safetensors.INDEX.JSON"])
def test_endings_in_capitals_are_known(tmp_path, name):
    arrays = {"a": np.ones(3, np.float32)}
    if name.endswith("JSON"):
        save_file(arrays, tmp_path / "shard.SafeTensors")
        (tmp_path / name).write_text('{"weight_map": {"a": "shard.SafeTensors"}}')
    elif name.endswith("PTH"):
        (tmp_path / name).write_bytes((Path(__file__).parent / "files/tensors.pth").read_bytes())
    else:
        write_arrays(tmp_path / name, arrays, {})
    # The folder of an index has another weight file too.
    source = tmp_path / name if name.endswith("JSON") else tmp_path
    weights = find_weights(str(source))
    assert weights.path == tmp_path / name and read_arrays(weights.path)[0]
    assert [path.suffix.lower() for path in weights.files] != [".json"]
