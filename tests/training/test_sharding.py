"""Rules of the mesh, without devices: sizes of parts, and what is refused."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from flowley_jax.config import DataConfig, ExperimentConfig, MeshConfig, SampleConfig
from flowley_jax.errors import FlowleyError
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.model.flowley import Constant
from flowley_jax.sampling.ahead import compile_sampling
from flowley_jax.training import speed
from flowley_jax.training.ahead import compile_step, device_bytes, lengths, step_flops, velocity_flops
from flowley_jax.training.ahead_table import table
from flowley_jax.training.chips import CHIPS, GPUS, chip_of
from flowley_jax.training.collectives import collectives
from flowley_jax.training.optimizer import make_optimizer
from flowley_jax.training.sharding import (
    AXES,
    Layout,
    check_sizes,
    make_layout,
    make_mesh,
    mesh_sizes,
    path_name,
)
from flowley_jax.training.speed import Speed, speed_of
from flowley_jax.training.state import abstract_state


def _layout(data=1, fsdp=1, tensor=1):
    mesh = AbstractMesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)
    return Layout(mesh, "bfloat16")


def _published_state(layout):
    config = ExperimentConfig()
    return abstract_state(config, make_optimizer(config.optim, config.train.steps), layout)[1]


@pytest.mark.parametrize("parts", [{"fsdp": 4}, {"fsdp": 16}, {"data": 4, "fsdp": 8, "tensor": 2}])
def test_a_device_holds_its_share_of_the_published_state(parts):
    state = _published_state(_layout())
    # 170.9 M parameters, two moments and two averages, float32.
    assert device_bytes(state) == pytest.approx(5 * 4 * 170.9e6, rel=0.01)
    sizes = {path_name(path): leaf.size for path, leaf in jax.tree.leaves_with_path(state)}
    of_tensor = re.compile(r"/(w1|w2|w3|out)/kernel")
    also_over_tensor = sum(size for name, size in sizes.items() if of_tensor.search(name))
    fsdp, tensor = parts["fsdp"], parts.get("tensor", 1)
    expected = 4 / fsdp * (also_over_tensor / tensor + sum(sizes.values()) - also_over_tensor)
    assert device_bytes(_published_state(_layout(**parts))) == pytest.approx(expected, rel=0.05)


def test_moments_and_averages_lie_where_their_weights_do():
    state = _published_state(_layout(fsdp=4, tensor=2))
    stored = {path_name(path): leaf.sharding.spec for path, leaf in jax.tree.leaves_with_path(state)}
    weights = {name: spec for name, spec in stored.items() if name.startswith("parameters/")}
    assert sum(spec != PartitionSpec() for spec in weights.values()) > 100
    for name, spec in weights.items():
        weight = name.removeprefix("parameters/")
        for prefix in ("optimizer/1/0/mu/", "optimizer/1/0/nu/", "averages/0/", "averages/1/"):
            assert stored[prefix + weight] == spec, weight


def test_every_matrix_of_the_published_model_is_split():
    layout = _layout(fsdp=16)
    state = _published_state(layout)
    for path, leaf in jax.tree.leaves_with_path(state.parameters):
        if len(leaf.shape) >= 2:
            assert leaf.sharding.shard_shape(leaf.shape) != leaf.shape, path_name(path)
    assert layout.left_whole(state.parameters) == []
    uneven = _layout(fsdp=3).left_whole(state.parameters)
    assert "final_conv/kernel/value (7, 512, 20)" in uneven


def test_sizes_that_the_mesh_does_not_divide_are_named():
    with pytest.raises(
        FlowleyError, match=r"^mesh\.data=2 × mesh\.fsdp=1 × mesh\.tensor=1 must be the number of devices, 1$"
    ):
        make_mesh(MeshConfig(data=2))
    for devices in (1, 3):
        with pytest.raises(
            FlowleyError,
            match=rf"^mesh\.fsdp=2 × mesh\.tensor=1 must divide the number of devices, {devices}$",
        ):
            mesh_sizes(MeshConfig(fsdp=2), devices)
    with pytest.raises(FlowleyError, match=r"mesh\.data=3 must be a multiple of the 2 slices"):
        mesh_sizes(MeshConfig(fsdp=2), 6, slices=2)
    assert mesh_sizes(MeshConfig(fsdp=2), 8, slices=2) == {"data": 4, "fsdp": 2, "tensor": 1}
    with pytest.raises(FlowleyError, match=r"mesh\.fsdp=0 must be at least 1"):
        MeshConfig(fsdp=0)
    config = ExperimentConfig(data=DataConfig(batch_size=6))
    with pytest.raises(FlowleyError, match=r"data\.batch_size=6 must be a multiple of data × fsdp = 4"):
        check_sizes(config, {"data": 2, "fsdp": 2, "tensor": 1})
    with pytest.raises(FlowleyError, match=r"model\.num_heads=8 must be a multiple of mesh\.tensor=3"):
        check_sizes(config, {"data": 1, "fsdp": 1, "tensor": 3})
    with pytest.raises(
        FlowleyError, match=r"data\.batch_size=300 must be a multiple of flow\.coupling_group=256"
    ):
        ExperimentConfig(data=DataConfig(batch_size=300))


def test_one_process_feeds_every_row():
    rows, group = make_layout(tiny.experiment("records")).rows(4)
    np.testing.assert_array_equal(rows, [[0, 1, 2, 3]])
    assert group == 0


PROGRAM = """HloModule jit_step, is_scheduled=true

%condition.1 (wide.param: (s32[], f32[8])) -> pred[] {
  %wide.param = (s32[], f32[8]) parameter(0)
  %bound = s32[]{:T(128)} constant(5)
  %count = s32[] get-tuple-element(%wide.param), index=0
  ROOT %less = pred[] compare(%count, %bound), direction=LT
}

%body.1 (param: (s32[], f32[8])) -> (s32[], f32[8]) {
  %gathered = bf16[3,64,16]{2,1,0:T(8,128)(2,1)} all-gather(%part), channel_id=1, dimensions={1}
  ROOT %next = (s32[], f32[8]) tuple(%a, %b)
}

ENTRY %main.2 (a: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]) while(%start), condition=%condition.1, body=%body.1, metadata={op_name="x"}
  %sums = (f32[64]{0}, bf16[8,2]{1,0}) all-reduce(%x, %y), channel_id=2, to_apply=%add.1
  %moved = (bf16[4]{0}, bf16[4]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%z), channel_id=3
  %done = bf16[4]{0} collective-permute-done(%moved)
  ROOT %out = f32[8] add(%a, %a)
}
"""


def test_exchanges_are_counted_as_often_as_their_loops_run():
    assert collectives(PROGRAM) == {
        "all-gather": (5, 5 * 2 * 3 * 64 * 16),
        "all-reduce": (1, 4 * 64 + 2 * 16),
        "collective-permute": (1, 2 * 4),
    }


@pytest.mark.scale
def test_the_compiled_step_is_accounted_for():
    config = tiny.experiment("records")
    # The lengths of the records that other tests train on.
    lengthened = dataclasses.replace(config.data, generate_seconds=0.8, generate_text_length=9)
    config = dataclasses.replace(config, data=lengthened)
    estimate = compile_step(config, "cpu", slices=1, mfu=0.5)
    state = abstract_state(config, make_optimizer(config.optim, 6), make_layout(config))[1]
    size = sum(leaf.size for leaf in jax.tree.leaves(state.parameters))
    assert lengths(config) == (25, 10, 9)
    assert estimate.tokens == 4 * (25 + 10 + 9)
    assert estimate.memory["parameters"] == 4 * size
    assert estimate.memory["averages"] == 8 * size
    assert estimate.memory["optimiser"] == 8 * size + 2 * jnp.dtype(jnp.int32).itemsize
    assert estimate.memory["temporaries"] > 0 and estimate.exchanges == {}
    twice = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=8))
    assert 1.8 < step_flops(twice, lengths(twice)) / estimate.flops < 2.0
    text = table(estimate, steps=6, mfu=0.5)
    assert f"{estimate.memory['parameters'] / 2**20:,.0f}" in text and "4 clips, 176 tokens" in text


@pytest.mark.parametrize("guidance", [0.0, 4.5])
def test_the_compiled_sampler_is_accounted_for(guidance):
    config = tiny.experiment("records")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, generate_seconds=0.8),
        sample=SampleConfig(solver=SolverConfig(name="heun", steps=3), guidance=guidance),
    )
    estimate = compile_sampling(config, "cpu", clips=3, mfu=0.5)
    # Heun's method evaluates the network twice in a step, and guidance has two branches.
    branches = 2 if guidance else 1
    evaluation = velocity_flops(config.model, 3 * branches, lengths(config))
    assert estimate.flops == 6 * evaluation
    parameters, constants = (
        sum(leaf.size for leaf in jax.tree.leaves(nnx.state(Flowley(config.model, rngs=nnx.Rngs(0)), kind)))
        for kind in (nnx.Param, Constant)
    )
    assert estimate.memory["parameters"] == 4 * (parameters + constants)
    assert estimate.memory["temporaries"] > 0
    assert "FLOPs" in table(estimate, steps=0, mfu=0.5) and "steps:" not in table(estimate, steps=0, mfu=0.5)


def test_work_does_not_depend_on_how_blocks_stand_in_the_program():
    scanned = dataclasses.replace(tiny.MODEL, layers="scanned", remat="block", single_depth=4)
    unrolled = dataclasses.replace(scanned, layers="unrolled", remat="none")
    assert velocity_flops(scanned, 2, (25, 10, 9)) == velocity_flops(unrolled, 2, (25, 10, 9))
    # The published network's, from a trace of the original.
    assert velocity_flops(ModelConfig(), 1, (250, 64, 77)) == pytest.approx(90.67e9, rel=0.02)


def test_what_jax_calls_its_devices_is_known():
    assert chip_of("TPU v5 lite") == chip_of("TPU v5e") == CHIPS["v5e"]
    assert chip_of("TPU v5") == CHIPS["v5p"] and chip_of("NVIDIA H100 80GB HBM3") == GPUS["H100"]
    assert chip_of("cpu") is None and speed_of(tiny.experiment("records"), (25, 10, 9)) is None


@pytest.mark.scale
def test_the_peak_is_that_of_all_devices(monkeypatch):
    config = tiny.experiment("records")
    flops = step_flops(config, (25, 10, 9))
    monkeypatch.setattr(speed, "chip_of", lambda kind: CHIPS["v4"])
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert speed_of(config, (25, 10, 9)) == Speed(flops=flops, peak=8 * 275e12)


def test_unknown_topologies_are_refused():
    for name in ("v9:2x2", "v5e", "v5e:4", "gpu"):
        with pytest.raises(FlowleyError, match=f"topology {name!r} must be cpu, or one of v4, v5e"):
            compile_step(tiny.experiment("records"), name, slices=1, mfu=0.5)
