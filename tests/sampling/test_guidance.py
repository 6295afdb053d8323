"""Guidance and solvers of trained runs: what they need, what they cost, and what they refuse."""

import dataclasses

import numpy as np
import pytest

from flowley_jax.errors import FlowleyError
from flowley_jax.flow.solver import SolverConfig
from flowley_jax.runs.workdir import read_config
from flowley_jax.sampling import Clip, Sampler


def _sampler(run, **changes):
    return Sampler.from_run(run, settings=dataclasses.replace(read_config(run).sample, **changes))


def _sound(run, **changes):
    sampler = _sampler(run, **changes)
    return sampler.sound(_frames(sampler), "a ball", clip_id="a")


def _frames(sampler):
    size = sampler.components.video_encoder.frame_size
    return np.random.default_rng(0).integers(0, 256, (10, size, size, 3), np.uint8)


def test_autoguidance_by_the_same_weights_changes_nothing(tiny_run):
    plain = _sound(tiny_run, guidance=1.0)
    same = _sound(tiny_run, guidance=3.0, autoguidance_step=3)
    # Rounding, which the iterations that find the phases amplify.
    np.testing.assert_allclose(same, plain, rtol=0, atol=1e-3 * np.abs(plain).max())
    other = _sound(tiny_run, guidance=3.0, autoguidance_step=3, autoguidance_sigma_rel=0.1)
    assert np.abs(other - plain).max() > 1e-2 * np.abs(plain).max()


def test_autoguidance_needs_a_snapshot_and_no_negative_prompt(tiny_run):
    with pytest.raises(FlowleyError, match=r"ema: no EMA snapshot at step 2; there are 3$"):
        _sampler(tiny_run, autoguidance_step=2)
    sampler = _sampler(tiny_run, autoguidance_step=3)
    clip = Clip(id="a", frames=_frames(sampler), negative_prompt="rain")
    with pytest.raises(FlowleyError, match=r"^a: negative_prompt='rain' does not go with autoguidance"):
        sampler.encode(clip)


def test_only_runs_of_flow_maps_take_their_steps(tiny_run):
    with pytest.raises(FlowleyError, match=r"solver\.name='flow_map' needs weights that were trained with"):
        _sampler(tiny_run, solver=SolverConfig(name="flow_map", steps=1))


@pytest.mark.parametrize(
    ("changes", "evaluations"),
    [
        ({}, 8),
        ({"guidance": 1.0}, 4),
        ({"guidance_from": 0.5}, 6),
        ({"guidance_from": 0.25, "guidance_to": 0.5, "guidance_text": 4.0}, 9),
        ({"guidance": 1.0, "guidance_text": 4.0}, 8),
        ({"zero_until": 0.1}, 6),
        ({"autoguidance_step": 3, "guidance_to": 0.3}, 6),
    ],
    ids=str,
)
def test_evaluations_of_every_branch_are_counted(tiny_run, caplog, changes, evaluations):
    caplog.set_level("INFO")
    _sound(tiny_run, solver=SolverConfig(steps=4), **changes)
    assert f"sampled with {evaluations} network evaluations per window" in caplog.text
