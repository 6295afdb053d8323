"""Weight files that are damaged, cut or made to do harm: each fault ends in one error that names the file."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.sources import read_settings
from flowley_jax.interop.weight_files import read_arrays, shards_of

FILES = Path(__file__).parent / "files"
FLIPS = (0x01, 0x80, 0xFF)
_SHARD = "model-00001-of-00001.safetensors"


def _read(path):
    """Read a file; return None if that ends in an error, which must name the file."""
    try:
        return read_arrays(path)[0]
    except FlowleyError as error:
        assert str(path) in str(error) or _SHARD in str(error)
        return None


def _torch_file(pickled, storages=None):
    """Return a zip archive as torch.save writes it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in (storages or {"0": bytes(4)}).items():
            archive.writestr(f"archive/data/{key}", data)
    return content.getvalue()


class _Global:
    """Name of a function of another package, which is pickled without it."""

    def __init__(self, name):
        self.name = name


class _Pickler(pickle._Pickler):
    """Pickler of one tensor with any numbers, as torch.save writes it."""

    def persistent_id(self, obj):
        return obj[1] if isinstance(obj, tuple) and obj and obj[0] == "persistent" else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Global):
            module, _, name = obj.name.rpartition(".")
            self.write(f"c{module}\n{name}\n".encode())
        else:
            super().save(obj, save_persistent_id)


def _tensor_pickle(*, offset=0, size=(1,), stride=(1,), count=1, key="0"):
    storage = ("persistent", ("storage", _Global("torch.FloatStorage"), key, "cpu", count))
    content = io.BytesIO()
    pickler = _Pickler(content, protocol=2)
    content.write(b"\x80\x02}")
    pickler.save("weight")
    pickler.save(_Global("torch._utils._rebuild_tensor_v2"))
    pickler.save((storage, offset, size, stride, False, None))
    content.write(b"Rs.")
    return content.getvalue()


def test_tensor_of_the_helper_is_read(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(_torch_file(_tensor_pickle(), {"0": np.asarray([7], np.float32).tobytes()}))
    np.testing.assert_array_equal(read_arrays(path)[0]["weight"], [7.0])


@pytest.mark.parametrize(
    "numbers",
    [
        {"size": (2**40,), "stride": (0,)},
        {"size": (2**20, 2**20), "stride": (0, 0)},
        {"size": (2**62, 0), "stride": (1, 1)},
        {"size": (4,), "stride": (-1,)},
        {"size": (-1,)},
        {"offset": -1},
        {"offset": 2**70},
        {"size": (1.5,)},
        {"size": ("a",)},
        {"size": (1, 1)},
        {"count": 2**40},
        {"count": "a"},
        {"key": "../0"},
        {"key": ["a"]},
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_the_file_are_refused(tmp_path, numbers):
    path = tmp_path / "a.pth"
    path.write_bytes(_torch_file(_tensor_pickle(**numbers)))
    with pytest.raises(FlowleyError, match=r"a\.pth: is damaged"):
        read_arrays(path)


def test_memo_number_takes_no_memory(tmp_path):
    # Python would allocate 32 GB for this memo.
    (tmp_path / "a.pth").write_bytes(_torch_file(b"\x80\x02}r\xff\xff\xff\xff."))
    with pytest.raises(FlowleyError, match=r"is damaged \(ValueError: object 4294967295 of a pickle"):
        read_arrays(tmp_path / "a.pth")


def test_compressed_entry_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", _tensor_pickle(count=2**20))
        archive.writestr("archive/data/0", bytes(2**22))
    with pytest.raises(FlowleyError, match=r"is compressed, which PyTorch never does"):
        read_arrays(tmp_path / "a.pth")


def test_flipped_bytes_of_pickles_end_in_errors_or_other_numbers(tmp_path):
    path, content = tmp_path / "a.pth", _tensor_pickle()
    refused = 0
    for position in range(len(content)):
        for flip in FLIPS:
            changed = bytearray(content)
            changed[position] ^= flip
            path.write_bytes(_torch_file(bytes(changed)))
            refused += _read(path) is None
    assert refused > len(content)


@pytest.mark.parametrize("name", ["tensors.pth", "calling.pth", "legacy.pth"])
def test_flipped_and_cut_torch_files_end_in_errors_or_other_numbers(tmp_path, name):
    content, path = (FILES / name).read_bytes(), tmp_path / "a.pth"
    for position in range(0, len(content), 7):
        changed = bytearray(content)
        changed[position] ^= FLIPS[position % len(FLIPS)]
        path.write_bytes(changed)
        _read(path)
        path.write_bytes(content[:position])
        assert _read(path) is None


@pytest.fixture
def sharded(tmp_path):
    """The index of one shard with two weights."""
    (tmp_path / _SHARD).write_bytes(save({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)}))
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": {"a": _SHARD, "b": _SHARD}}))
    return path


@pytest.mark.parametrize("which", ["index", "shard"])
def test_flipped_and_cut_shards_end_in_errors_or_other_numbers(sharded, which):
    assert read_arrays(sharded)[0].keys() == {"a", "b"}
    path = sharded if which == "index" else sharded.with_name(_SHARD)
    content = path.read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= FLIPS[position % len(FLIPS)]
        path.write_bytes(changed)
        _read(sharded)
        path.write_bytes(content[:position])
        assert _read(sharded) is None


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "model.safetensors.index.json"},
        {"a": 3},
        {"a": None},
        {"a": ["x"]},
        {"a": "../" + _SHARD},
        {"a": "/etc/hostname"},
        {"a": "x\0.bin"},
        {"a": ""},
        {},
        [],
        3,
    ],
    ids=str,
)
def test_unusable_index_is_named_in_the_error(sharded, weight_map):
    sharded.write_text(json.dumps({"weight_map": weight_map}))
    for read in (read_arrays, shards_of):
        with pytest.raises(
            FlowleyError, match=r"index\.json: (is not an index|weight_map\['a'\]=.* must be)"
        ):
            read(sharded)


def test_weight_that_is_not_in_its_shard_is_missing(sharded):
    other = "model-00002-of-00002.safetensors"
    sharded.with_name(other).write_bytes(save({"c": np.ones(1, np.float32)}))
    sharded.write_text(json.dumps({"weight_map": {"a": _SHARD, "b": other, "c": other}}))
    with pytest.raises(FlowleyError, match="1 listed weights are missing, the first is b"):
        read_arrays(sharded)


def _safetensors(kind, shape, size):
    header = json.dumps({"weight": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_safetensors("F8_E4M3", [4], 4), r"weight has type F8_E4M3 and shape \[4\], which is not supported"),
        (_safetensors("F32", [0, 2**62], 0), "weight has type F32 and shape .* is not supported"),
        (_safetensors("F32", [2**62, 4], 4), "is damaged or not a safetensors file"),
        (_safetensors("F32", [4], 4), "is damaged or not a safetensors file"),
        (struct.pack("<Q", 2**60) + b"{}", "is damaged or not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "it is a Git LFS pointer"),
    ],
)
def test_unusable_safetensors_are_named_in_the_error(tmp_path, content, message):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(FlowleyError, match=message) as caught:
        read_arrays(tmp_path / "a.safetensors")
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[" * 10**5, "is not valid JSON"),
        (b"[1]", "holds a JSON list, expected an object"),
    ],
)
def test_unusable_settings_are_named_in_the_error(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(FlowleyError, match=rf"config\.json: {message}|{message}"):
        read_settings(tmp_path / "config.json")
