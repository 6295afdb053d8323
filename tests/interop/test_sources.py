"""Files, folders and the hub as places of published weights."""

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.sources import find_source, read_settings


def _touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


def test_a_folder_s_settings_and_tokenizer_are_found(tmp_path):
    _touch(tmp_path, "model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json", "README.md")
    (tmp_path / "config.json").write_text('{"d_model": 8}')
    found = find_source(str(tmp_path))
    assert found.weights == tmp_path / "model.safetensors" and found.files == (found.weights,)
    assert read_settings(found.settings_file("t5")) == {"d_model": 8}
    assert [path.name for path in found.tokenizer] == ["tokenizer.json"]


def test_settings_of_open_clip_come_first(tmp_path):
    _touch(tmp_path, "open_clip_pytorch_model.bin", "config.json")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    found = find_source(str(tmp_path))
    assert found.settings_file("clip").name == "open_clip_config.json"
    # It says nothing of a model of another kind in the same folder.
    assert found.settings_file("t5").name == "config.json"


def test_what_else_a_folder_holds_is_said(tmp_path, caplog):
    _touch(tmp_path, "model.safetensors", "v1-16.pth", "model-00001-of-00002.safetensors")
    with caplog.at_level("INFO", logger="flowley_jax"):
        assert find_source(str(tmp_path)).weights.name == "model.safetensors"
    assert "taking model.safetensors; there are also v1-16.pth" in caplog.text


@pytest.mark.parametrize("name", ["downloads/v1-16.pth", "./model", "there/model"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(FlowleyError, match=r"no such file or folder$"):
        find_source(name)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "holds no file of weights"),
        (("a.pth", "b.pth"), r"several files of weights: a\.pth, b\.pth; name the file"),
    ],
)
def test_folders_that_do_not_say_which_file(tmp_path, names, message):
    with pytest.raises(FlowleyError, match=message):
        find_source(str(_touch(tmp_path / "x", *names)))


def test_parts_that_are_missing_are_named(tmp_path):
    _touch(tmp_path, "model-00001-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    with pytest.raises(FlowleyError, match=r"1 of 2 parts are missing: model-00002-of-00002\.safetensors"):
        find_source(str(tmp_path))


def test_a_name_that_is_neither_path_nor_repository(tmp_path):
    with pytest.raises(FlowleyError, match=r"no such file or folder$"):
        find_source(str(tmp_path / "none.pth"))


class _Hub:
    """A hub that has one repository, or cannot be reached."""

    def __init__(self, folder=None, error=None):
        self.folder, self.error = folder, error

    def list_repo_files(self, repository):
        if self.error:
            raise self.error
        return sorted(path.name for path in self.folder.iterdir())


def test_only_what_is_needed_is_downloaded(tmp_path, monkeypatch):
    folder = _touch(
        tmp_path / "hub",
        "model.safetensors",
        "tf_model.h5",
        "pytorch_model.bin",
        "config.json",
        "tokenizer.json",
    )
    asked = []
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: _Hub(folder))
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, allow_patterns: asked.append(allow_patterns) or str(folder),
    )
    assert find_source("someone/some-model").weights == folder / "model.safetensors"
    assert asked == [["model.safetensors", "config.json", "tokenizer.json"]]


def test_without_a_hub_the_files_to_fetch_are_named(monkeypatch):
    def nothing_cached(*_, **__):
        raise LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: _Hub(error=ConnectionError("no route")))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing_cached)
    with pytest.raises(FlowleyError) as caught:
        find_source("google/flan-t5-large")
    for part in (
        "cannot be reached",
        "huggingface.co/google/flan-t5-large",
        "model.safetensors",
        "spiece.model",
        "--source",
    ):
        assert part in str(caught.value)


def test_without_a_hub_what_was_downloaded_before_is_used(tmp_path, monkeypatch):
    folder = _touch(tmp_path / "cache", "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: _Hub(error=ConnectionError("no route")))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, local_files_only: str(folder))
    assert find_source("google/flan-t5-large").weights.parent == folder


def test_a_repository_that_does_not_exist(monkeypatch):
    # Its constructor wants a response of the client's own kind.
    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: _Hub(error=error))
    with pytest.raises(FlowleyError, match="no such repository on the hub"):
        find_source("nobody/nothing")
