"""Training of flow maps: the step, resumption, the files of a run, meshes, and what it costs."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import launching
import numpy as np
import pytest
import tiny

from flowley_jax.aot.train import compile_step
from flowley_jax.config import FlowConfig, LoraConfig, MeshConfig
from flowley_jax.data.pipeline import eval_batches
from flowley_jax.errors import FlowleyError
from flowley_jax.flow.flow_map import FlowMapConfig, teacher_velocity
from flowley_jax.model.flowley import merge_model
from flowley_jax.runs.weights import averaged_weights, read_weights, write_weights
from flowley_jax.runs.workdir import BASE
from flowley_jax.training.flops import step_flops, velocity_flops
from flowley_jax.training.loop import train
from flowley_jax.training.metrics import Progress, read_history
from flowley_jax.training.state import StepConfig, state_from_weights, weights_in_loss
from flowley_jax.training.step import draw_examples, flow_map_target, train_step, valid_step

LENGTHS = (tiny.AUDIO, tiny.VIDEO, 9)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return tiny.write_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def source(records, tmp_path_factory):
    """Train the run whose weights the others start from."""
    workdir = tmp_path_factory.mktemp("source")
    train(tiny.experiment(records), workdir)
    return workdir


def _flow(*, guidance=2.0, velocity_share=0.5):
    return FlowConfig(map=FlowMapConfig(enabled=True, guidance=guidance, velocity_share=velocity_share))


def _experiment(records, source, *, flow=None, **changes):
    return tiny.fine_tuning(records, source, flow=flow or _flow(), **changes)


def _with_train(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def _first_state(config, source):
    start = averaged_weights(source, sigma_rel=0.05)
    step_config, layout = StepConfig.from_experiment(config), tiny.layout(config)
    return state_from_weights(step_config, layout, start.parameters, start.constants), step_config, layout


def _batch(records):
    return jax.tree.map(jnp.asarray, next(eval_batches(records, "train", batch_size=4)))


def _reported(workdir):
    """Return the losses of training and validation in the order of their reports."""
    names = ("train/loss", "valid/loss")
    return [row[name] for row in read_history(workdir) for name in names if name in row]


def _doubled(tree):
    return jax.tree.map(lambda leaf: 2.0 * leaf, tree)


def _assert_equal(tree, other):
    for leaf, expected in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(leaf, expected)


def test_draws_of_the_velocity_are_those_of_other_runs(records, source):
    config = _experiment(records, source)
    state, _, layout = _first_state(config, source)
    model = merge_model(config.model, state.parameters, state.constants)
    plain, of_map = (
        draw_examples(model, _batch(records), jax.random.key(3), flow, layout, training=True)
        for flow in (FlowConfig(), config.flow)
    )
    assert plain.r is None and of_map.r is not None
    for name in ("noisy", "target", "t"):
        np.testing.assert_array_equal(getattr(of_map, name)[1::2], getattr(plain, name)[1::2])
    np.testing.assert_array_equal(of_map.r[1::2], plain.t[1::2])
    assert (of_map.r > of_map.t)[::2].all()
    for name in ("video", "text", "text_len"):
        np.testing.assert_array_equal(getattr(of_map, name), getattr(plain, name))
    assert of_map.dropout_keys is not None and (of_map.dropout_keys == plain.dropout_keys).all()


def test_targets_come_from_the_teacher_and_the_average(records, source):
    config = _experiment(records, source)
    state, _, layout = _first_state(config, source)
    teacher = merge_model(config.model, state.frozen, state.constants)
    draw = np.random.default_rng(0)
    others = jax.tree.map(
        lambda x: x + jnp.asarray(0.1 * draw.normal(size=x.shape), jnp.float32), state.averages[0]
    )
    averaged = merge_model(config.model, others, state.constants)
    examples = draw_examples(teacher, _batch(records), jax.random.key(3), config.flow, layout, training=False)
    conditions = (examples.video, examples.text, examples.text_len)
    velocity = teacher_velocity(teacher, examples.noisy, *conditions, examples.t, config.flow.map)
    target = flow_map_target(teacher, averaged, examples, 0.3, config.flow)
    assert examples.r is not None
    np.testing.assert_allclose(target[1::2], velocity[1::2], rtol=0, atol=1e-6)
    middle = examples.t + 0.3 * (examples.r - examples.t)
    moved = examples.noisy + (middle - examples.t)[:, None, None] * velocity
    rest = averaged(moved, *conditions, middle, examples.r)
    np.testing.assert_allclose(target[::2], (0.3 * velocity + 0.7 * rest)[::2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("adapters", [LoraConfig(), tiny.LORA], ids=["all weights", "LoRA"])
def test_a_flow_map_starts_as_its_teacher(records, source, adapters):
    # Without guidance, and with velocities only, the target is what the network computes already.
    flow = _flow(guidance=1.0, velocity_share=1.0)
    state, config, layout = _first_state(_experiment(records, source, flow=flow, lora=adapters), source)
    weights = weights_in_loss(state, config)
    for tree in weights:
        _assert_equal(tree, averaged_weights(source, sigma_rel=0.05).parameters)

    def losses(**changes):
        changed = dataclasses.replace(config, flow=_flow(**changes))
        return valid_step(weights, state.constants, _batch(records), 0, config=changed, layout=layout)

    same = losses(guidance=1.0, velocity_share=1.0)
    assert float(same["velocity_loss"]) < 1e-12 and float(same["direction_loss"]) < 1e-5
    assert float(losses(guidance=1.0, velocity_share=0.5)["velocity_loss"]) > 1e-9
    assert float(losses(guidance=3.0, velocity_share=1.0)["velocity_loss"]) > 1e-9


def test_accumulation_gives_the_same_step(records, source):
    results = []
    for parts in (1, 2):
        config = _with_train(_experiment(records, source), accumulation=parts)
        state, step_config, layout = _first_state(config, source)
        state, metrics = train_step(state, _batch(records), config=step_config, layout=layout)
        results.append((jax.device_get(state.parameters), jax.device_get(metrics)))
    (parameters, metrics), (accumulated, other) = results
    for name in ("loss", "velocity_loss", "direction_loss", "gradient_norm"):
        assert float(other[name]) == pytest.approx(float(metrics[name]), rel=1e-5)
    # Adam's first step is the sign of the gradient, whose rounding matters where it is almost zero.
    for leaf, expected in zip(jax.tree.leaves(accumulated), jax.tree.leaves(parameters), strict=True):
        assert np.mean(np.abs(leaf - expected) < 1e-5) > 0.98


@pytest.mark.parametrize(
    "adapters",
    [LoraConfig(), pytest.param(tiny.LORA, marks=pytest.mark.scale)],
    ids=["all weights", "LoRA"],
)
def test_a_resumed_flow_map_equals_an_uninterrupted_one_bit_for_bit(
    records, source, tmp_path, adapters, caplog, monkeypatch
):
    copy = shutil.copytree(source, tmp_path / "source")
    config = _experiment(records, copy, lora=adapters)
    with caplog.at_level("INFO", logger="flowley_jax"):
        train(config, tmp_path / "whole")
    assert f"trains a flow map from {copy}, guidance 2 folded in" in caplog.text
    original = Progress.show

    def crash(self, step, values):
        original(self, step, values)
        if step == 3:
            raise RuntimeError("power cut")

    monkeypatch.setattr(Progress, "show", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, tmp_path / "resumed")
    monkeypatch.setattr(Progress, "show", original)
    # The run has its own copy of its teacher.
    shutil.rmtree(copy)
    train(config, tmp_path / "resumed")
    assert _reported(tmp_path / "resumed") == _reported(tmp_path / "whole")
    whole, resumed = (averaged_weights(tmp_path / run, sigma_rel=0.05) for run in ("whole", "resumed"))
    _assert_equal(whole.parameters, resumed.parameters)
    start = averaged_weights(source, sigma_rel=0.05)
    _assert_equal(read_weights(tmp_path / "whole" / BASE, config.model).parameters, start.parameters)


def test_a_flow_map_keeps_its_teacher_and_its_configuration(records, source, tmp_path):
    config = _experiment(records, source)
    train(_with_train(config, steps=2), tmp_path)
    sizes = [
        sum(path.stat().st_size for path in folder.rglob("d/*"))
        for folder in (tmp_path / "checkpoints" / "2", source / "checkpoints" / "6")
    ]
    # The teacher is not in the checkpoints.
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
    with pytest.raises(FlowleyError, match=r"flow\.map\.guidance was 2\.0, is now 3\.0"):
        train(dataclasses.replace(config, flow=_flow(guidance=3.0)), tmp_path)
    start = averaged_weights(source, sigma_rel=0.05)
    (tmp_path / BASE).unlink()
    write_weights(tmp_path / BASE, dataclasses.replace(start, parameters=_doubled(start.parameters)), {})
    with pytest.raises(FlowleyError, match=r"base\.safetensors: is not what .* was trained on"):
        train(config, tmp_path)


def test_runs_of_earlier_versions_resume(records, tmp_path):
    config = tiny.experiment(records, steps=2)
    train(config, tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["flow"]["map"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert train(_with_train(config, steps=3), tmp_path).step == 3


def test_the_flops_of_the_targets_are_counted(records, source):
    plain, guided, unguided = (
        step_flops(_experiment(records, source, flow=flow), LENGTHS)
        for flow in (FlowConfig(), _flow(), _flow(guidance=1.0))
    )
    evaluation = velocity_flops(tiny.MODEL, 4, LENGTHS)
    # Two branches of the teacher, and one evaluation of the average.
    assert (guided - plain) / evaluation == pytest.approx(3.0, rel=0.05)
    assert (unguided - plain) / evaluation == pytest.approx(2.0, rel=0.05)


@pytest.mark.scale
def test_the_estimate_counts_the_memory_of_the_teacher(records, source):
    config = _experiment(records, source)
    lengthened = dataclasses.replace(config.data, generate_seconds=0.8, generate_text_length=9)
    estimate = compile_step(dataclasses.replace(config, data=lengthened), "cpu", slices=1, mfu=0.5)
    assert estimate.memory["frozen"] == estimate.memory["parameters"] > 0


@pytest.mark.scale
@pytest.mark.parametrize("adapters", [LoraConfig(), tiny.LORA], ids=["all weights", "LoRA"])
def test_losses_do_not_depend_on_the_mesh(records, source, tmp_path, adapters):
    config = _experiment(records, source, lora=adapters)
    train(config, tmp_path / "single")
    split = _with_train(config, accumulation=2)
    split = dataclasses.replace(split, mesh=MeshConfig(fsdp=2, tensor=2))
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(split)))
    script = f"""
import json
from pathlib import Path
from absl import flags
from flowley_jax.config import experiment_from
from flowley_jax.training.loop import train
flags.FLAGS.mark_as_parsed()
folder = Path({str(tmp_path)!r})
train(experiment_from(json.loads((folder / "config.json").read_text())), folder / "split")
"""
    launching.run_script(script, devices=4)
    reported = [_reported(tmp_path / run) for run in ("single", "split")]
    assert [len(losses) for losses in reported] == [5, 5]
    np.testing.assert_allclose(reported[1], reported[0], rtol=1e-5)
