"""Reading of some arrays of a file: the bytes of the others are not read."""

import json
import zipfile

import numpy as np
import pytest

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.torch_writer import write_torch_file
from flowley_jax.interop.weight_files import read_arrays, write_arrays

ARRAYS = {"a": np.arange(3.0), "b": np.arange(5.0), "c": np.arange(2.0)}


def _without_b(names):
    return [name for name in names if name != "b"]


def _assert_selected(path):
    arrays, _ = read_arrays(path, select=_without_b)
    assert arrays.keys() == {"a", "c"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_only_selected_arrays_are_returned(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        write_torch_file(path, ARRAYS)
    else:
        write_arrays(path, ARRAYS, {})
    _assert_selected(path)


def test_the_bytes_of_other_arrays_are_not_read(tmp_path):
    write_torch_file(tmp_path / "whole.pth", ARRAYS)
    path = tmp_path / "part.pth"
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(path, "w") as part:
        for entry in whole.namelist():
            if not entry.endswith("data/1"):
                part.writestr(entry, whole.read(entry))
    _assert_selected(path)
    with pytest.raises(FlowleyError, match="is damaged"):
        read_arrays(path)


def test_arrays_are_selected_from_all_shards(tmp_path):
    shards = {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}
    write_arrays(tmp_path / "1.safetensors", {name: ARRAYS[name] for name in "ac"}, {})
    write_arrays(tmp_path / "2.safetensors", {"b": ARRAYS["b"]}, {})
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": shards}))
    _assert_selected(path)
