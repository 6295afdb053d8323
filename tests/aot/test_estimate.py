"""Ahead-of-time estimates: collectives, memory, FLOPs, and unknown topologies."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tiny
from flax import nnx

from flowley_jax.aot.collectives import count_collectives
from flowley_jax.aot.estimate import format_table
from flowley_jax.aot.sample import compile_sampling
from flowley_jax.aot.train import compile_step
from flowley_jax.common.devices import GPU_SPECS, TPU_SPECS, device_spec
from flowley_jax.config import SampleConfig
from flowley_jax.errors import FlowleyError
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.model.flowley import Constant
from flowley_jax.training import flops
from flowley_jax.training.flops import (
    StepRate,
    configured_lengths,
    lower_step,
    step_flops,
    step_rate,
    velocity_flops,
)

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


def test_collectives_in_loops_count_once_per_iteration():
    assert count_collectives(PROGRAM) == {
        "all-gather": (5, 5 * 2 * 3 * 64 * 16),
        "all-reduce": (1, 4 * 64 + 2 * 16),
        "collective-permute": (1, 2 * 4),
    }


@pytest.mark.scale
def test_the_estimate_of_the_step_adds_up():
    config = tiny.experiment("records")
    # The lengths of the records that other tests train on.
    lengthened = dataclasses.replace(config.data, generate_seconds=0.8, generate_text_length=9)
    config = dataclasses.replace(config, data=lengthened)
    estimate = compile_step(config, "cpu", slices=1, mfu=0.5)
    state = tiny.abstract_state(config)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.parameters))
    assert configured_lengths(config) == (25, 10, 9)
    assert estimate.tokens == 4 * (25 + 10 + 9)
    assert estimate.memory["parameters"] == 4 * size
    assert estimate.memory["averages"] == 8 * size
    assert estimate.memory["optimiser"] == 8 * size + 2 * jnp.dtype(jnp.int32).itemsize
    assert estimate.memory["temporaries"] > 0 and estimate.collectives == {}
    twice = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=8))
    assert 1.8 < step_flops(twice, configured_lengths(twice)) / estimate.flops < 2.0
    text = format_table(estimate, steps=6, mfu=0.5)
    assert f"{estimate.memory['parameters'] / 2**20:,.0f}" in text and "4 clips, 176 tokens" in text


@pytest.mark.parametrize("guidance", [0.0, 4.5])
def test_the_estimate_of_sampling_adds_up(guidance):
    config = tiny.experiment("records")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, generate_seconds=0.8),
        sample=SampleConfig(solver=SolverConfig(name="heun", steps=3), guidance=guidance),
    )
    estimate = compile_sampling(config, "cpu", clips=3, mfu=0.5)
    # Heun's method evaluates the network twice in a step, and guidance has two branches.
    branches = 2 if guidance else 1
    evaluation = velocity_flops(config.model, 3 * branches, configured_lengths(config))
    assert estimate.flops == 6 * evaluation
    parameters, constants = (
        sum(leaf.size for leaf in jax.tree.leaves(nnx.state(Flowley(config.model, rngs=nnx.Rngs(0)), kind)))
        for kind in (nnx.Param, Constant)
    )
    assert estimate.memory["parameters"] == 4 * (parameters + constants)
    assert estimate.memory["temporaries"] > 0
    assert "FLOPs" in format_table(estimate, steps=0, mfu=0.5) and "steps:" not in format_table(
        estimate, steps=0, mfu=0.5
    )


def test_flops_do_not_depend_on_loops_and_recomputation():
    scanned = dataclasses.replace(tiny.MODEL, layers="scanned", remat="block", single_depth=4)
    unrolled = dataclasses.replace(scanned, layers="unrolled", remat="none")
    assert velocity_flops(scanned, 2, (25, 10, 9)) == velocity_flops(unrolled, 2, (25, 10, 9))
    # The published network's, from a trace of the original.
    assert velocity_flops(ModelConfig(), 1, (250, 64, 77)) == pytest.approx(90.67e9, rel=0.02)


def test_flops_of_a_step_leave_out_what_the_backward_pass_computes_again():
    experiment = tiny.experiment("records")
    flow = dataclasses.replace(experiment.flow, immiscible=False)
    config = dataclasses.replace(experiment, flow=flow)
    lengths = (25, 10, 9)
    real = lower_step(config, tiny.layout(config), lengths).cost_analysis()["flops"]
    counted = step_flops(config, lengths)
    # The tiny network consists of attention to a larger part than the published one.
    assert 1.005 * counted < real < 1.2 * counted
    assert step_flops(config, lengths) == counted
    assert lower_step(config, tiny.layout(config), lengths).cost_analysis()["flops"] == real


def test_device_kinds_of_jax_are_known():
    assert device_spec("TPU v5 lite") == device_spec("TPU v5e") == TPU_SPECS["v5e"]
    assert (
        device_spec("TPU v5") == TPU_SPECS["v5p"]
        and device_spec("NVIDIA H100 80GB HBM3") == GPU_SPECS["H100"]
    )
    assert device_spec("cpu") is None and step_rate(tiny.experiment("records"), (25, 10, 9)) is None


@pytest.mark.scale
def test_the_peak_rate_is_the_sum_over_all_devices(monkeypatch):
    config = tiny.experiment("records")
    work = step_flops(config, (25, 10, 9))
    monkeypatch.setattr(flops, "device_spec", lambda kind: TPU_SPECS["v4"])
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert step_rate(config, (25, 10, 9)) == StepRate(flops=work, peak_flops=8 * 275e12)


def test_unknown_topologies_are_refused():
    for name in ("v9:2x2", "v5e", "v5e:4", "gpu"):
        with pytest.raises(FlowleyError, match=f"topology {name!r} must be cpu, or one of v4, v5e"):
            compile_step(tiny.experiment("records"), name, slices=1, mfu=0.5)
