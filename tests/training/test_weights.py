"""Fine-tuning: from another run or a file, all weights or LoRA, and what comes out of it."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
from flax import nnx
from safetensors.numpy import save_file

from flowley_jax.config import LoraConfig, StartConfig
from flowley_jax.errors import FlowleyError
from flowley_jax.interop import flowley_to_torch
from flowley_jax.interop.weight_files import read_arrays
from flowley_jax.model import Flowley
from flowley_jax.sampling import Sampler
from flowley_jax.training import loop, lora
from flowley_jax.training.checkpoint import EmaSnapshots, RunCheckpoints
from flowley_jax.training.loop import train
from flowley_jax.training.metrics import read_history
from flowley_jax.training.optimizer import make_optimizer
from flowley_jax.training.sharding import make_layout, path_name
from flowley_jax.training.state import abstract_state, state_from, weights_of
from flowley_jax.training.weights import (
    averaged_weights,
    read_weights,
    starting_weights,
    with_adapters,
    write_adapters,
    write_weights,
)
from flowley_jax.training.workdir import BASE, read_config

RANK = LoraConfig(rank=3, alpha=6.0)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return tiny.write_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def source(records, tmp_path_factory):
    """A run whose weights others start from."""
    workdir = tmp_path_factory.mktemp("source")
    train(tiny.experiment(records), workdir)
    return workdir


def _tuning(records, source, **changes):
    config = tiny.experiment(records, steps=4, start=StartConfig(weights=str(source)))
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def adapted(records, source, tmp_path_factory):
    """The source, adapted by LoRA."""
    workdir = tmp_path_factory.mktemp("adapted")
    train(_tuning(records, source, lora=RANK), workdir)
    return workdir


def _assert_equal(tree, other, **tolerance):
    for leaf, expected in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(leaf, expected, **({"rtol": 0, "atol": 0} | tolerance))


def _last_state(workdir, config):
    found = read_weights(workdir / BASE, config.model)
    optimizer = make_optimizer(config.optim, config.train.steps)
    _, state = state_from(found.parameters, found.constants, config, optimizer, make_layout(config))
    with RunCheckpoints(workdir, keep=2) as checkpoints:
        return checkpoints.restore(state)[0]


def test_a_run_starts_from_the_averages_and_statistics_of_another(records, source, tmp_path, monkeypatch):
    """What the first step is given."""
    given = []

    class Seen(Exception):
        pass

    def step(state, batch):
        given.append(state)
        raise Seen

    monkeypatch.setattr(loop, "make_train_step", lambda *_: step)
    with pytest.raises(Seen):
        train(_tuning(records, source), tmp_path)
    start = averaged_weights(source, sigma_rel=0.05)
    _assert_equal(given[0].parameters, start.parameters)
    _assert_equal(given[0].constants, start.constants)
    for average in given[0].averages:
        _assert_equal(average, start.parameters)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(start.parameters["final_conv"]))


@pytest.mark.scale
@pytest.mark.parametrize("adapters", [LoraConfig(), RANK])
def test_a_tuned_run_goes_on_bit_for_bit_without_its_source(records, source, tmp_path, adapters):
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    config = _tuning(records, copy, lora=adapters)
    train(config, tmp_path / "whole")
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
    train(short, tmp_path / "parts")
    shutil.rmtree(copy)
    train(config, tmp_path / "parts")
    losses = [
        [row["train/loss"] for row in read_history(tmp_path / run) if "train/loss" in row]
        for run in ("whole", "parts")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    whole, parts = (averaged_weights(tmp_path / run, sigma_rel=0.05) for run in ("whole", "parts"))
    _assert_equal(whole.parameters, parts.parameters)


def test_lora_trains_adapters_and_nothing_else(records, source, adapted):
    config = _tuning(records, source, lora=RANK)
    state = _last_state(adapted, config)
    start = averaged_weights(source, sigma_rel=0.05)
    _assert_equal(state.frozen, start.parameters)
    assert all(np.abs(pair["b"]).max() > 0 for pair in state.parameters.values())
    after = {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(weights_of(state, config))}
    before = {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(start.parameters)}
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    assert changed == {f"{layer.replace('.', '/')}/kernel/value" for layer in state.parameters}
    kinds = {layer.rsplit(".", 1)[1] for layer in state.parameters}
    assert kinds == {"qkv", "q", "kv", "out"}
    layer = "single_stream.0.out"
    pair = {part: np.asarray(value, np.float64) for part, value in state.parameters[layer].items()}
    name = f"{layer.replace('.', '/')}/kernel/value"
    expected = before[name] + 2.0 * np.einsum("kir,ro->kio", pair["a"], pair["b"])
    np.testing.assert_allclose(after[name], expected, atol=1e-6)
    stored = sum(path.stat().st_size for path in (adapted / "checkpoints" / "4").rglob("d/*"))
    assert stored < sum(path.stat().st_size for path in (source / "checkpoints" / "6").rglob("d/*")) / 4


def test_adapters_of_a_file_do_to_the_source_what_they_did_in_training(source, adapted, tmp_path):
    merged = averaged_weights(adapted, sigma_rel=0.05)
    write_adapters(tmp_path / "x.safetensors", merged.adapters, RANK)
    start = averaged_weights(source, sigma_rel=0.05)
    _assert_equal(
        with_adapters(start, tmp_path / "x.safetensors", factor=1.0).parameters, merged.parameters, atol=3e-7
    )
    without = with_adapters(start, tmp_path / "x.safetensors", factor=0.0)
    _assert_equal(without.parameters, start.parameters)
    sampler = Sampler.load(source, adapter=tmp_path / "x.safetensors")
    _assert_equal(sampler.variables[0], merged.parameters, atol=3e-7)


def test_all_weights_are_written_and_read_under_the_published_names(source, records, tmp_path):
    found = averaged_weights(source, sigma_rel=0.08)
    path = tmp_path / "weights.safetensors"
    write_weights(path, found, {"sigma_rel": "0.08"})
    arrays, notes = read_arrays(path)
    assert notes == {"sigma_rel": "0.08"} and "single_modal_stream.1.self_attn.qkv_prj.weight" in arrays
    config = _tuning(records, path)
    again = starting_weights(config)
    _assert_equal(again.parameters, found.parameters)
    _assert_equal(again.constants, found.constants)


def test_half_precision_files_are_read(tmp_path):
    model = Flowley(tiny.MODEL, rngs=nnx.Rngs(0))
    state_dict = flowley_to_torch(model)
    save_file(
        {f"model.{k}": v.astype(ml_dtypes.bfloat16) for k, v in state_dict.items()},
        tmp_path / "h.safetensors",
    )
    found = read_weights(tmp_path / "h.safetensors", tiny.MODEL)
    _assert_equal(found.parameters, nnx.state(model, nnx.Param), rtol=2**-8)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.safetensors", None, "no such file"),
        ("cut.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "is damaged or no safetensors file"),
        ("weights.npz", b"x", r"must be \.safetensors, or one of \.pth"),
        ("weights.pth", b"x", "is no PyTorch checkpoint, or is truncated"),
    ],
)
def test_files_that_hold_no_weights_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FlowleyError, match=message) as caught:
        read_weights(tmp_path / name, tiny.MODEL)
    assert str(tmp_path / name) in str(caught.value)


def test_adapters_are_no_weights_to_start_from(records, adapted, tmp_path):
    config = read_config(adapted)
    path = tmp_path / "adapters.safetensors"
    write_adapters(path, averaged_weights(adapted, sigma_rel=0.05).adapters, config.lora)
    with pytest.raises(FlowleyError, match=r"adapters\.safetensors: holds LoRA adapters, no whole weights"):
        read_weights(path, config.model)


def test_weights_of_another_network_are_refused_with_every_array(records, source, adapted, tmp_path):
    wide = dataclasses.replace(tiny.MODEL, width=32)
    with pytest.raises(FlowleyError, match="another network") as caught:
        starting_weights(_tuning(records, source, model=wide))
    assert len(str(caught.value).splitlines()) == 94
    write_weights(tmp_path / "w.safetensors", averaged_weights(source, sigma_rel=0.05), {})
    with pytest.raises(FlowleyError, match=r"w\.safetensors: the state dict does not fit"):
        read_weights(tmp_path / "w.safetensors", wide)
    with pytest.raises(FlowleyError, match=r"w\.safetensors: holds no LoRA adapters"):
        with_adapters(averaged_weights(source, sigma_rel=0.05), tmp_path / "w.safetensors", factor=1.0)


def test_adapters_that_fit_nothing_are_refused(records, source):
    config = _tuning(records, source, lora=LoraConfig(rank=2, layers=("nowhere",)))
    with pytest.raises(FlowleyError, match=r"lora\.layers: 'nowhere' fits none of\n") as caught:
        abstract_state(config, make_optimizer(config.optim, 4), make_layout(config))
    names = str(caught.value).split("\n  ")[1:]
    assert "audio_input.first" in names and "single_stream.N.reader.video.kv" in names
    assert len(names) == len(set(names)) and not any(".0." in name for name in names)
    weights = {"layer": {"kernel": {"value": jnp.zeros((4, 5))}}}
    pair = {"a": jnp.zeros((4, 2)), "b": jnp.zeros((2, 5))}
    with pytest.raises(FlowleyError, match="layers that are not there: other"):
        lora.merged(weights, {"other": pair}, strength=1.0)
    with pytest.raises(FlowleyError, match="adapter of layer is made for another shape"):
        lora.merged(weights, {"layer": {**pair, "b": jnp.zeros((2, 6))}}, strength=1.0)
    with pytest.raises(FlowleyError, match=r"lora\.rank=2 needs start\.weights"):
        tiny.experiment(records, lora=LoraConfig(rank=2))
    with pytest.raises(FlowleyError, match=r"lora\.layers: '\(' is no regular expression"):
        LoraConfig(layers=("(",))


def test_snapshots_of_lora_hold_adapters_alone(adapted):
    with EmaSnapshots(adapted) as snapshots:
        assert snapshots.steps == [3, 4]
    size = sum(path.stat().st_size for path in (adapted / "ema" / "4").rglob("d/*"))
    assert size < (adapted / BASE).stat().st_size / 2
