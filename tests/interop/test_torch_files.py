"""Reading of files that PyTorch wrote (files/make.py), without PyTorch; make test-torch tests more."""

import io
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from golden_data import load

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.torch_files import Inert, open_torch_file
from flowley_jax.interop.weight_files import ENTRY, read_arrays

FILES = Path(__file__).parent / "files"
BASE = np.arange(24, dtype=np.float32).reshape(4, 6) / 7


def test_all_kinds_of_tensors_are_read():
    arrays, notes = read_arrays(FILES / "tensors.pth")
    assert notes == {ENTRY: "state_dict"}
    expected = {
        "plain": BASE,
        "transposed": BASE.T,
        "strided": BASE[1::2, ::3],
        "scalar": np.float32(3.5),
        "empty": np.zeros((0, 3), np.float32),
        "half": BASE.astype(np.float16),
        "long": np.arange(5),
        "parameter": BASE[2:],
    }
    assert arrays.keys() == expected.keys() | {"bfloat16"}
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape
        np.testing.assert_array_equal(arrays[name], array)
    assert arrays["bfloat16"].dtype.name == "bfloat16"
    np.testing.assert_allclose(arrays["bfloat16"].astype(np.float32), BASE, rtol=2**-8)


def test_plain_values_are_read_too():
    with open_torch_file(FILES / "tensors.pth") as checkpoint:
        assert checkpoint["epoch"] == 3 and checkpoint["optimizer"] == {"lr": 0.1}


def test_pickle_that_calls_a_function_is_refused_and_not_run(capfd):
    with pytest.raises(
        FlowleyError, match=r"calling\.pth: holds \S*builtin\S*\.print, which is not a tensor"
    ):
        read_arrays(FILES / "calling.pth")
    assert capfd.readouterr().out == ""


def test_files_older_than_the_zip_format_have_the_same_tensors():
    with open_torch_file(FILES / "legacy.pth") as checkpoint:
        old = {name: tensor.read() for name, tensor in checkpoint.items()}
    new, _ = read_arrays(FILES / "tensors.pth")
    assert old.keys() == new.keys()
    for name, array in new.items():
        assert old[name].dtype == array.dtype
        np.testing.assert_array_equal(old[name], array)


@pytest.mark.parametrize(
    ("name", "prefix", "entry"),
    [
        ("panns_like_legacy", "panns_like/model/", "model"),
        ("vggish_like_legacy", "vggish_like/", ""),
        ("clap_like_zip", "clap_like/state_dict/", "state_dict"),
    ],
)
def test_published_layouts_are_read(tmp_path, name, prefix, entry):
    """Files of both formats, with NumPy's objects and an optimizer next to the weights."""
    golden, path = load("torch_files"), tmp_path / "a.pth"
    path.write_bytes(golden[f"file/{name}"].tobytes())
    arrays, notes = read_arrays(path)
    assert notes == ({ENTRY: entry} if entry else {})
    expected = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
    assert arrays.keys() == expected.keys() and expected
    for key, array in expected.items():
        assert arrays[key].dtype == array.dtype and arrays[key].shape == array.shape
        np.testing.assert_array_equal(arrays[key], array)


def test_storages_that_are_not_needed_are_not_read(tmp_path):
    content = load("torch_files")["file/clap_like_zip"].tobytes()
    path, needed = tmp_path / "a.pth", 0
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    storages = [name for name in entries if "/data/" in name]
    for missing in storages:
        with zipfile.ZipFile(path, "w") as archive:
            for name in entries.keys() - {missing}:
                archive.writestr(name, entries[name])
        try:
            assert len(read_arrays(path)[0]) == 4
        except FlowleyError as error:
            assert "is damaged" in str(error)
            needed += 1
    assert needed == 4 < len(storages)


def test_nothing_of_numpy_s_objects_is_kept(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(load("torch_files")["file/panns_like_legacy"].tobytes())
    with open_torch_file(path) as checkpoint:
        leaves = jax.tree.leaves(checkpoint["sampler"], is_leaf=lambda leaf: isinstance(leaf, Inert))
        assert any(isinstance(leaf, Inert) for leaf in leaves)
        assert not any(vars(leaf) for leaf in leaves if isinstance(leaf, Inert))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"x", "is not a PyTorch checkpoint, or is truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "is text .*perhaps an error page"),
        ((FILES / "tensors.pth").read_bytes()[:1500], "is not a PyTorch checkpoint, or is truncated"),
    ],
)
def test_other_files_are_named_in_the_error(tmp_path, content, message):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(FlowleyError, match=message) as caught:
        read_arrays(tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in str(caught.value)


def test_other_zip_archives_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(2))
    (tmp_path / "a.npz").rename(tmp_path / "a.pth")
    with pytest.raises(FlowleyError, match="is a zip archive without a PyTorch checkpoint"):
        read_arrays(tmp_path / "a.pth")


@pytest.mark.parametrize("position", range(100, 2600, 250))
def test_changed_byte_is_an_error_or_harmless(tmp_path, position):
    content = bytearray((FILES / "tensors.pth").read_bytes())
    content[position] ^= 0x55
    (tmp_path / "a.pth").write_bytes(content)
    try:
        arrays, _ = read_arrays(tmp_path / "a.pth")
    except FlowleyError as error:
        assert str(tmp_path / "a.pth") in str(error)
    else:
        # The byte is padding or a header that is not read.
        np.testing.assert_array_equal(arrays["plain"], BASE)
