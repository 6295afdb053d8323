"""Fine-tuning from another run or a file, of all weights or by LoRA, and the weights that result."""

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

from flowley_jax.common.trees import named_leaves
from flowley_jax.config import LoraConfig, StartConfig
from flowley_jax.data.components import Components
from flowley_jax.errors import FlowleyError
from flowley_jax.interop import flowley_to_torch
from flowley_jax.interop.weight_files import read_arrays, write_arrays
from flowley_jax.model import Flowley
from flowley_jax.runs import lora
from flowley_jax.runs.snapshots import EmaSnapshots
from flowley_jax.runs.weights import (
    averaged_weights,
    read_weights,
    starting_weights,
    with_adapters,
    write_adapters,
    write_weights,
)
from flowley_jax.runs.workdir import BASE, read_config
from flowley_jax.sampling import Sampler
from flowley_jax.training import loop
from flowley_jax.training.checkpoint import RunCheckpoints
from flowley_jax.training.loop import train
from flowley_jax.training.metrics import read_history
from flowley_jax.training.state import StepConfig, model_weights, state_from_weights


def _assert_equal(tree, other, **tolerance):
    for leaf, expected in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(leaf, expected, **({"rtol": 0, "atol": 0} | tolerance))


def _last_state(workdir, config):
    base = read_weights(workdir / BASE, config.model)
    state = state_from_weights(
        StepConfig.from_experiment(config), tiny.layout(config), base.parameters, base.constants
    )
    with RunCheckpoints(workdir, keep=2) as checkpoints:
        return checkpoints.restore(state)[0]


def test_a_run_starts_from_the_averages_and_statistics_of_another(records, source, tmp_path, monkeypatch):
    states = []

    class FirstStepError(Exception):
        pass

    def first_step(state, batch, **static):
        states.append(state)
        raise FirstStepError

    monkeypatch.setattr(loop, "train_step", first_step)
    with pytest.raises(FirstStepError):
        train(tiny.fine_tuning(records, source), tmp_path)
    start = averaged_weights(source, sigma_rel=0.05)
    _assert_equal(states[0].parameters, start.parameters)
    _assert_equal(states[0].constants, start.constants)
    for average in states[0].averages:
        _assert_equal(average, start.parameters)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(start.parameters["final_conv"]))


@pytest.mark.scale
@pytest.mark.parametrize("adapters", [LoraConfig(), tiny.LORA])
def test_a_fine_tuned_run_resumes_bit_for_bit_without_its_source(records, source, tmp_path, adapters):
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    config = tiny.fine_tuning(records, copy, lora=adapters)
    train(config, tmp_path / "whole")
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
    train(short, tmp_path / "resumed")
    shutil.rmtree(copy)
    train(config, tmp_path / "resumed")
    losses = [
        [row["train/loss"] for row in read_history(tmp_path / run) if "train/loss" in row]
        for run in ("whole", "resumed")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    whole, resumed = (averaged_weights(tmp_path / run, sigma_rel=0.05) for run in ("whole", "resumed"))
    _assert_equal(whole.parameters, resumed.parameters)


def test_lora_trains_only_adapters(records, source, adapted):
    config = tiny.fine_tuning(records, source, lora=tiny.LORA)
    state = _last_state(adapted, config)
    start = averaged_weights(source, sigma_rel=0.05)
    _assert_equal(state.frozen, start.parameters)
    assert all(np.abs(pair["b"]).max() > 0 for pair in state.parameters.values())
    after, before = named_leaves(model_weights(state, config.lora)), named_leaves(start.parameters)
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


def test_adapters_from_a_file_reproduce_the_merged_weights(source, adapted, tmp_path):
    merged = averaged_weights(adapted, sigma_rel=0.05)
    write_adapters(tmp_path / "x.safetensors", merged, tiny.LORA)
    start = averaged_weights(source, sigma_rel=0.05)
    _assert_equal(
        with_adapters(start, tmp_path / "x.safetensors", factor=1.0).parameters, merged.parameters, atol=3e-7
    )
    without = with_adapters(start, tmp_path / "x.safetensors", factor=0.0)
    _assert_equal(without.parameters, start.parameters)
    sampler = Sampler.from_run(source, adapter=tmp_path / "x.safetensors")
    _assert_equal(sampler.variables[0], merged.parameters, atol=3e-7)


def test_adapters_bring_the_level_of_their_training_sounds(source, adapted, tmp_path):
    path = tmp_path / "x.safetensors"
    start = averaged_weights(source, sigma_rel=0.05)
    start = dataclasses.replace(start, log_mel_max=np.linspace(-2.0, 1.0, 81, dtype=np.float32))
    own = start.log_mel_max + np.where(np.arange(81) % 2, 1.0, -1.0).astype(np.float32)
    write_adapters(
        path, dataclasses.replace(averaged_weights(adapted, sigma_rel=0.05), log_mel_max=own), tiny.LORA
    )
    np.testing.assert_array_equal(
        with_adapters(start, path, factor=0.5).log_mel_max, np.maximum(start.log_mel_max, own)
    )
    np.testing.assert_array_equal(with_adapters(start, path, factor=0.0).log_mel_max, start.log_mel_max)
    # The records of these runs have no bounds.
    assert Sampler.from_run(source, adapter=path).components.log_mel_max is None
    unknown = dataclasses.replace(start, log_mel_max=None)
    assert with_adapters(unknown, path, factor=1.0).log_mel_max is None
    arrays, notes = read_arrays(path)
    level = notes.pop("flowley_jax.log_mel_max")
    write_arrays(path, arrays, notes)
    assert with_adapters(start, path, factor=1.0).log_mel_max is None
    for damaged in ("[1, 2]", "{", level.replace("[", "[NaN, ", 1)):
        write_arrays(path, arrays, {**notes, "flowley_jax.log_mel_max": damaged})
        with pytest.raises(
            FlowleyError, match=r"x\.safetensors: its note flowley_jax\.log_mel_max (is|must)"
        ):
            with_adapters(start, path, factor=1.0)


def test_weights_are_written_and_read_under_the_published_names(source, records, tmp_path):
    found = averaged_weights(source, sigma_rel=0.08)
    path = tmp_path / "weights.safetensors"
    write_weights(path, found, {"sigma_rel": "0.08"})
    arrays, notes = read_arrays(path)
    assert notes["sigma_rel"] == "0.08" and "single_modal_stream.1.self_attn.qkv_prj.weight" in arrays
    config = tiny.fine_tuning(records, path)
    again = starting_weights(config.start, config.model, Components.load(records))
    _assert_equal(again.parameters, found.parameters)
    _assert_equal(again.constants, found.constants)


@pytest.mark.parametrize("kind", ["run", "file"])
def test_starting_from_weights_of_another_length_names_both(records, source, tmp_path, caplog, kind):
    found = averaged_weights(source, sigma_rel=0.05)
    components = Components.load(records)
    assert found.seconds == components.seconds
    path = source if kind == "run" else tmp_path / "w.safetensors"
    if kind == "file":
        write_weights(path, found, {})
        assert read_weights(path, tiny.MODEL).seconds == components.seconds
    starting_weights(StartConfig(weights=str(path)), tiny.MODEL, components)
    assert "was trained on clips of" not in caplog.text
    longer = dataclasses.replace(components, seconds=2.0)
    starting_weights(StartConfig(weights=str(path)), tiny.MODEL, longer)
    assert f"{path}: was trained on clips of 0.8 s; those of the records have 2 s" in caplog.text


def test_a_damaged_length_is_refused_with_the_files_name(source, tmp_path):
    write_weights(tmp_path / "w.safetensors", averaged_weights(source, sigma_rel=0.05), {})
    arrays, notes = read_arrays(tmp_path / "w.safetensors")
    write_arrays(tmp_path / "w.safetensors", arrays, {**notes, "flowley_jax.seconds": "-1"})
    with pytest.raises(
        FlowleyError, match=r"w\.safetensors: its note flowley_jax\.seconds=-1 must be at least 0\.01"
    ):
        read_weights(tmp_path / "w.safetensors", tiny.MODEL)


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
        ("cut.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "is damaged or not a safetensors file"),
        ("weights.npz", b"x", r"must end in \.safetensors, \.pth"),
        ("weights.pth", b"x", "is not a PyTorch checkpoint, or is truncated"),
    ],
)
def test_files_without_weights_are_refused_by_name(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FlowleyError, match=message) as caught:
        read_weights(tmp_path / name, tiny.MODEL)
    assert str(tmp_path / name) in str(caught.value)


def test_adapters_are_refused_as_starting_weights(records, adapted, tmp_path):
    config = read_config(adapted)
    path = tmp_path / "adapters.safetensors"
    write_adapters(path, averaged_weights(adapted, sigma_rel=0.05), config.lora)
    with pytest.raises(FlowleyError, match=r"adapters\.safetensors: holds LoRA adapters, not whole weights"):
        read_weights(path, config.model)


def test_weights_of_a_different_network_are_refused_with_every_array(records, source, adapted, tmp_path):
    wide = dataclasses.replace(tiny.MODEL, width=32)
    with pytest.raises(FlowleyError, match="another network") as caught:
        starting_weights(StartConfig(weights=str(source)), wide, Components.load(records))
    assert "93 arrays differ: audio_input/first/bias/value: found" in str(caught.value)
    write_weights(tmp_path / "w.safetensors", averaged_weights(source, sigma_rel=0.05), {})
    with pytest.raises(
        FlowleyError, match=r"w\.safetensors: the state dict does not match the configuration"
    ):
        read_weights(tmp_path / "w.safetensors", wide)
    with pytest.raises(FlowleyError, match=r"w\.safetensors: holds no LoRA adapters"):
        with_adapters(averaged_weights(source, sigma_rel=0.05), tmp_path / "w.safetensors", factor=1.0)


def test_adapters_that_match_no_layer_are_refused(records, source):
    config = tiny.fine_tuning(records, source, lora=LoraConfig(rank=2, layers=("nowhere",)))
    with pytest.raises(FlowleyError, match=r"lora\.layers: 'nowhere' matches none of ") as caught:
        tiny.abstract_state(config)
    names = str(caught.value).partition(" none of ")[2].split(", ")
    assert "audio_input.first" in names and "single_stream.N.reader.video.kv" in names
    assert len(names) == len(set(names)) and not any(".0." in name for name in names)
    weights = {"layer": {"kernel": {"value": jnp.zeros((4, 5))}}}
    pair = {"a": jnp.zeros((4, 2)), "b": jnp.zeros((2, 5))}
    with pytest.raises(FlowleyError, match="adapters of unknown layers: other"):
        lora.merged(weights, {"other": pair}, strength=1.0)
    with pytest.raises(FlowleyError, match="adapter of layer does not fit the kernel's shape"):
        lora.merged(weights, {"layer": {**pair, "b": jnp.zeros((2, 6))}}, strength=1.0)
    with pytest.raises(FlowleyError, match=r"lora\.rank=2 needs start\.weights"):
        tiny.experiment(records, lora=LoraConfig(rank=2))
    with pytest.raises(FlowleyError, match=r"lora\.layers='\(' must be a regular expression"):
        LoraConfig(layers=("(",))


def test_snapshots_of_lora_hold_only_adapters(adapted):
    with EmaSnapshots(adapted) as snapshots:
        assert snapshots.steps == [3, 4]
    size = sum(path.stat().st_size for path in (adapted / "ema" / "4").rglob("d/*"))
    assert size < (adapted / BASE).stat().st_size / 2
