"""Reading of files that PyTorch writes, without PyTorch: make test-torch."""

import collections
import pickle

import numpy as np
import pytest
import torch

from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation.features import KINDS, write_av_benchmark_features
from flowley_jax.interop.torch_writer import write_torch_file
from flowley_jax.interop.weight_files import read_arrays

pytestmark = pytest.mark.torch


def _tensors():
    torch.manual_seed(0)
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
    return {
        "plain": base,
        "transposed": base.T,
        "strided": base[1::2, ::3],
        "offset": base[2:],
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "double": base.double(),
        "long": torch.arange(5),
        "int": torch.arange(5, dtype=torch.int32),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(base.clone()),
        "module": torch.nn.Conv1d(3, 4, 5).weight,
    }


def _assert_same(arrays, tensors):
    assert set(arrays) == set(tensors)
    for name, tensor in tensors.items():
        expected = tensor.detach()
        assert tuple(arrays[name].shape) == tuple(expected.shape), name
        assert arrays[name].dtype.name == str(expected.dtype).removeprefix("torch."), name
        np.testing.assert_array_equal(arrays[name].astype(np.float64), expected.double().numpy())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_all_kinds_of_tensors_are_read(tmp_path, suffix):
    torch.save(_tensors(), tmp_path / f"a{suffix}")
    _assert_same(read_arrays(tmp_path / f"a{suffix}")[0], _tensors())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_all_pickle_protocols_are_read(tmp_path, protocol):
    torch.save(_tensors(), tmp_path / "a.pth", pickle_protocol=protocol)
    _assert_same(read_arrays(tmp_path / "a.pth")[0], _tensors())


@pytest.mark.parametrize("entry", ["state_dict", "model", "generator"])
def test_weights_within_a_checkpoint_are_read(tmp_path, entry):
    state = collections.OrderedDict(a=torch.ones(2), b=torch.zeros(3))
    extra = {
        "epoch": 3,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]},
    }
    torch.save({entry: state, **extra}, tmp_path / "a.ckpt")
    _assert_same(read_arrays(tmp_path / "a.ckpt")[0], state)


def test_state_dict_of_a_module_is_read(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(module.state_dict(), tmp_path / "a.pth")
    _assert_same(read_arrays(tmp_path / "a.pth")[0], module.state_dict())


def test_pickled_module_is_refused_by_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(
        FlowleyError, match=r"holds torch\.nn\.modules\.linear\.Linear, which is not a tensor"
    ):
        read_arrays(tmp_path / "a.pth")


def test_files_older_than_the_zip_format_have_the_same_tensors(tmp_path):
    torch.save(_tensors(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    _assert_same(read_arrays(tmp_path / "a.pth")[0], _tensors())


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 0.999])
def test_truncated_files_of_the_older_format_are_recognised(tmp_path, share):
    torch.save(_tensors(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[: int(share * len(content))])
    with pytest.raises(FlowleyError, match=r"a\.pth: is (damaged|not a PyTorch checkpoint)"):
        read_arrays(tmp_path / "a.pth")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 0.999])
def test_truncated_files_are_recognised(tmp_path, share):
    torch.save(_tensors(), tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[: int(share * len(content))])
    with pytest.raises(FlowleyError, match=r"a\.pth: is not a PyTorch checkpoint, or is truncated"):
        read_arrays(tmp_path / "a.pth")


def test_flipped_bytes_are_recognised(tmp_path):
    torch.save({"a": torch.arange(4000.0)}, tmp_path / "a.pth")
    content = bytearray((tmp_path / "a.pth").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(FlowleyError, match=r"a\.pth: is damaged"):
        read_arrays(tmp_path / "a.pth")


class _Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return eval, (self.command,)


def test_malicious_pickle_is_refused_and_never_run(tmp_path):
    command = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).write_text('x')"
    torch.save({"a": torch.ones(2), "b": _Evil(command)}, tmp_path / "a.pth")
    with pytest.raises(FlowleyError, match=r"holds builtins\.eval|holds __builtin__\.eval"):
        read_arrays(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()
    # PyTorch would have run it.
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_bare_pickle_is_not_a_checkpoint(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(FlowleyError, match="is not a PyTorch checkpoint"):
        read_arrays(tmp_path / "a.pt")


def test_pytorch_reads_what_is_written_without_it(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((2, 3)).astype(np.float32),
        "b": {"c": np.arange(4), "d": np.asarray(2.5), "e": np.zeros((0, 3), np.float16)},
        "transposed": rng.standard_normal((2, 3)).T,
    }
    write_torch_file(tmp_path / "a.pth", arrays)
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    assert loaded.keys() == arrays.keys() and loaded["b"].keys() == arrays["b"].keys()
    for tensor, array in zip(
        [loaded["a"], *loaded["b"].values(), loaded["transposed"]],
        [arrays["a"], *arrays["b"].values(), arrays["transposed"]],
        strict=True,
    ):
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.numpy().dtype == array.dtype
    (loaded["a"] + 1).sum()


def test_pytorch_reads_caches_of_features(tmp_path):
    """av-benchmark's scores load them so."""
    rng = np.random.default_rng(0)
    features = {
        name: {clip: rng.standard_normal((2, 3, 4)[: kind.ndim], np.float32) for clip in ("b", "a", "ü 1")}
        for name, kind in KINDS.items()
        if kind.file
    }
    write_av_benchmark_features(tmp_path, features)
    for name, by_clip in features.items():
        loaded = torch.load(tmp_path / KINDS[name].file, weights_only=True)
        # The order of the clips is part of the Inception score.
        assert list(loaded) == list(by_clip)
        for clip, array in by_clip.items():
            tensor = loaded[clip][KINDS[name].entry] if KINDS[name].entry else loaded[clip]
            assert tensor.dtype == torch.float32
            np.testing.assert_array_equal(tensor.numpy(), array)
