"""The network as a flow map: its last blocks see the time at the end of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.model.single_stream import SingleStreamBlock

CONFIG = ModelConfig(
    audio_dim=6, video_dim=10, text_dim=8, width=16, num_heads=2, multi_depth=1, single_depth=4, dropout=0.2
)
TIMES = jnp.asarray([0.2, 0.7], jnp.float32)


def _model(layers):
    """Return a model with random weights; those of its last layer are zero at first."""
    graphdef, variables = nnx.split(
        Flowley(ModelConfig(**{**CONFIG.__dict__, "layers": layers}), rngs=nnx.Rngs(0))
    )
    draw = np.random.default_rng(1)
    drawn = jax.tree.map(lambda x: jnp.asarray(0.1 * draw.normal(size=x.shape), jnp.float32), variables)
    return nnx.merge(graphdef, drawn)


def _inputs():
    draw = np.random.default_rng(0)
    shapes = [(2, 25, 6), (2, 8, 10), (2, 7, 8)]
    return (*(jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in shapes), jnp.asarray([3, 7]))


@pytest.mark.parametrize("layers", ["scanned", "unrolled"])
@pytest.mark.parametrize("dropout", [False, True])
def test_a_step_of_no_length_has_the_velocity(layers, dropout):
    model = _model(layers)
    keys = jax.random.split(jax.random.key(3), 2)
    options = {"deterministic": not dropout, "rng": keys if dropout else None}
    velocity = model(*_inputs(), TIMES, **options)
    np.testing.assert_allclose(model(*_inputs(), TIMES, TIMES, **options), velocity, rtol=0, atol=1e-7)


def test_scanned_blocks_see_the_same_times():
    ends = jnp.asarray([0.6, 0.9], jnp.float32)
    unrolled, scanned = (_model(layers)(*_inputs(), TIMES, ends) for layers in ("unrolled", "scanned"))
    np.testing.assert_allclose(scanned, unrolled, rtol=0, atol=1e-6)


def test_the_first_blocks_see_the_start_and_the_last_ones_the_end(monkeypatch):
    model, ends, seen = _model("unrolled"), jnp.asarray([0.6, 0.9], jnp.float32), []
    call = SingleStreamBlock.__call__

    def recorded(self, *args, condition, **options):
        seen.append(condition)
        return call(self, *args, condition=condition, **options)

    monkeypatch.setattr(SingleStreamBlock, "__call__", recorded)
    model(*_inputs(), TIMES, ends)
    _, video, text, _ = _inputs()
    video, text = model.video_input(video), model.text_input(text)
    at_start, at_end = (model.global_condition(video, text, t, key=None) for t in (TIMES, ends))
    for condition, expected in zip(seen, [at_start, at_start, at_end, at_end], strict=True):
        np.testing.assert_array_equal(condition, expected)


def test_the_end_matters_for_every_item_by_itself():
    model, ends = _model("unrolled"), jnp.asarray([0.6, 0.7], jnp.float32)
    velocity, mean = model(*_inputs(), TIMES), model(*_inputs(), TIMES, ends)
    assert np.abs(mean[0] - velocity[0]).max() > 1e-3
    np.testing.assert_allclose(mean[1], velocity[1], rtol=0, atol=1e-7)
