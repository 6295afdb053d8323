"""Representation alignment: its loss, what it trains, and where its head is kept."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flowley_jax.common.trees import named_leaves
from flowley_jax.config import FlowConfig
from flowley_jax.data.pipeline import eval_batches
from flowley_jax.errors import FlowleyError
from flowley_jax.flow import path
from flowley_jax.flow.flow_map import FlowMapConfig
from flowley_jax.flow.losses import LossConfig
from flowley_jax.model import abstract_model
from flowley_jax.training.alignment import alignment_loss, new_head, with_head, without_head
from flowley_jax.training.state import StepConfig, create_state
from flowley_jax.training.step import train_step

ALIGNED = FlowConfig(loss=LossConfig(alignment_weight=0.5))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return tiny.write_records(tmp_path_factory.mktemp("records") / "records")


def _states(records: Path, flow: FlowConfig, *, steps: int, **batch_changes):
    """Return the state before the first step, and the state and metrics after each of some steps."""
    config = tiny.experiment(records, flow=flow)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, weight_decay=0.0))
    step_config, layout = StepConfig.from_experiment(config), tiny.layout(config)
    dim = config.model.audio_dim
    state = create_state(step_config, layout, latent_mean=np.zeros(dim), latent_std=np.ones(dim))
    batch = jax.tree.map(jnp.asarray, next(eval_batches(records, "train", batch_size=4)) | batch_changes)
    # Copies, because the step donates the state.
    states = [jax.tree.map(np.asarray, state)]
    metrics = []
    for _ in range(steps):
        state, step_metrics = train_step(state, batch, config=step_config, layout=layout)
        states.append(jax.tree.map(np.asarray, state))
        metrics.append({name: float(value) for name, value in step_metrics.items()})
    return states, metrics


def test_the_loss_is_one_minus_the_cosine_of_what_two_layers_read():
    head = new_head(tiny.MODEL, jax.random.key(0))
    rng = np.random.default_rng(0)
    head = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), head)
    stream = rng.standard_normal((2, 5, tiny.MODEL.width)).astype(np.float32)
    clean = rng.standard_normal((2, 5, tiny.MODEL.audio_dim)).astype(np.float32)
    first, second = (
        {name: np.asarray(x, np.float64) for name, x in head[key].items()} for key in ("first", "second")
    )
    hidden = stream @ first["kernel"] + first["bias"]
    read = (hidden / (1.0 + np.exp(-hidden))) @ second["kernel"] + second["bias"]
    cosines = np.sum(read * clean, axis=-1) / np.linalg.norm(read, axis=-1) / np.linalg.norm(clean, axis=-1)
    loss = alignment_loss(head, jnp.asarray(stream), jnp.asarray(clean))
    assert float(loss) == pytest.approx(np.mean(1.0 - cosines), abs=1e-5)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_the_data_follow_from_a_point_of_the_path_and_the_velocity(t):
    noise, data = (jax.random.normal(jax.random.key(seed), (1, 3, 2)) for seed in (0, 1))
    times = jnp.full((1,), t)
    found = path.data_at_end(path.interpolate(noise, data, times), path.target_velocity(noise, data), times)
    np.testing.assert_allclose(found, data, atol=1e-6)


def test_alignment_trains_the_middle_of_a_network_whose_last_layer_is_still_zero(records):
    moved = {}
    for weight in (0.0, 0.5):
        flow = FlowConfig(loss=LossConfig(alignment_weight=weight))
        states, metrics = _states(records, flow, steps=1)
        before, after = (named_leaves(state.parameters) for state in states)
        moved[weight] = {name.split("/")[0] for name in before if np.any(before[name] != after[name])}
        assert ("alignment_loss" in metrics[0]) == bool(weight)
        # The untrained network predicts 0, whose direction loss is 1.
        assert metrics[0]["loss"] == pytest.approx(metrics[0]["velocity_loss"] + 0.5, rel=1e-6)
    assert moved[0.0] == {"final_conv"}
    assert {"final_conv", "audio_input", "video_input", "multi_stream"} <= moved[0.5]
    assert not {"single_stream", "cross_video", "cross_text"} & moved[0.5]


def test_the_head_learns_and_no_average_has_it(records):
    states, metrics = _states(records, ALIGNED, steps=30)
    assert metrics[0]["alignment_loss"] > 0.8
    assert metrics[-1]["alignment_loss"] < 0.75 * metrics[0]["alignment_loss"]
    final = states[-1]
    assert sorted(final.head) == ["first", "second"]
    network = named_leaves(abstract_model(tiny.MODEL)[1])
    for tree in (final.parameters, *final.averages):
        assert set(named_leaves(tree)) == set(network)


def test_a_step_that_is_not_finite_leaves_the_head(records):
    bad = np.full((4, tiny.AUDIO, tiny.MODEL.audio_dim), np.nan, np.float32)
    (before, after), metrics = _states(records, ALIGNED, steps=1, audio_mean=bad)
    assert metrics[0]["skipped"] == 1.0
    jax.tree.map(np.testing.assert_array_equal, before.head, after.head)


def test_a_tree_without_a_head_is_that_of_the_parameters():
    parameters, head = {"weight": jnp.ones(2)}, {"first": {"kernel": jnp.ones((2, 2))}}
    assert with_head(parameters, {}) is parameters
    assert without_head(parameters, {}) == (parameters, {})
    assert without_head(with_head(parameters, head), head) == (parameters, head)


def test_a_flow_map_with_alignment_is_refused():
    with pytest.raises(FlowleyError, match=r"flow\.loss\.alignment_weight=0\.5 must be 0"):
        FlowConfig(map=FlowMapConfig(enabled=True), loss=LossConfig(alignment_weight=0.5))
