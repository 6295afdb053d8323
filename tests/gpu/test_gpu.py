"""Fused attention, the auction and the network on an NVIDIA GPU, against exact results.

`make test-gpu` runs these; `make test` leaves them out.
"""

import dataclasses
import functools

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_data import relative_error
from scipy.optimize import linear_sum_assignment

from flowley_jax.kernels.auction import assign
from flowley_jax.kernels.psca import SoftMask, psca
from flowley_jax.model import Constant, Flowley, ModelConfig
from flowley_jax.model.attention import attention

pytestmark = pytest.mark.gpu


def _inputs(queries: int, keys: int):
    """Return q, k, v and a gradient of the output."""
    draw = np.random.default_rng(queries + keys)
    shapes = [(4, n, 8, 64) for n in (queries, keys, keys, queries)]
    return [jnp.asarray(draw.standard_normal(shape), jnp.bfloat16) for shape in shapes]


def _output_and_gradients(function, q, k, v, dout):
    def run(q, k, v, dout):
        out, vjp = jax.vjp(function, q, k, v)
        return out, *vjp(dout)

    return [np.asarray(x, np.float32) for x in jax.jit(run)(q, k, v, dout)]


def _exact(function, *inputs):
    """Compute in float32, with products in full precision."""
    with jax.default_matmul_precision("highest"):
        return _output_and_gradients(function, *(x.astype(jnp.float32) for x in inputs))


@pytest.mark.parametrize("lengths", [None, (391, 350, 315, 320)])
@pytest.mark.parametrize(("queries", "keys"), [(391, 391), (250, 250), (250, 77)])
def test_attention_by_cudnn_is_close_to_float32(queries, keys, lengths):
    inputs = _inputs(queries, keys)
    key_lengths = None if lengths is None else jnp.minimum(jnp.asarray(lengths, jnp.int32), keys)
    attend = functools.partial(attention, key_lengths=key_lengths)
    actual = _output_and_gradients(functools.partial(attend, implementation="cudnn"), *inputs)
    expected = _exact(functools.partial(attend, implementation="xla"), *inputs)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) < 2e-2


@pytest.mark.parametrize("fade_scale", [1.0, 0.5, 0.0])
@pytest.mark.parametrize(("queries", "keys"), [(250, 64), (345, 63)])
def test_psca_by_cudnn_is_close_to_float32(queries, keys, fade_scale):
    inputs = _inputs(queries, keys)
    mask = SoftMask(video_fps=8.0, audio_fps=8.0 * queries / keys, window=0, fade_range=4, fade="cosine")
    attend = functools.partial(psca, mask=mask, fade_scale=fade_scale)
    actual = _output_and_gradients(functools.partial(attend, implementation="cudnn"), *inputs)
    expected = _exact(functools.partial(attend, implementation="xla"), *inputs)
    for a, b in zip(actual, expected, strict=True):
        # If a row reads a single frame, its gradient of q is the difference of terms of order one.
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-2 * max(1.0, float(np.abs(b).max())))


def test_the_auction_finds_the_lowest_total_cost():
    draw = np.random.default_rng(0)
    costs = draw.normal(100.0, 1.0, (2, 256, 256)).astype(np.float32)
    for matrix, assigned in zip(costs, np.asarray(jax.jit(assign)(costs)), strict=True):
        assert sorted(assigned) == list(range(256))
        lowest = matrix[linear_sum_assignment(matrix)].sum(dtype=np.float64)
        assert matrix[np.arange(256), assigned].sum(dtype=np.float64) == pytest.approx(lowest, rel=1e-6)


def test_the_network_and_its_gradient_in_bfloat16_are_close_to_float32():
    config = ModelConfig(width=128, num_heads=2, multi_depth=2, single_depth=3, dropout=0.0)
    draw = np.random.default_rng(0)
    shapes = [(4, 125, config.audio_dim), (4, 32, config.video_dim), (4, 20, config.text_dim)]
    inputs = [jnp.asarray(draw.standard_normal(shape, np.float32)) for shape in shapes]
    inputs += [jnp.asarray([20, 3, 0, 11]), jnp.asarray(draw.random(4, np.float32))]
    weight = draw.standard_normal(shapes[0], np.float32)

    def run(dtype: str):
        graphdef, parameters, constants = nnx.split(
            Flowley(dataclasses.replace(config, dtype=dtype), rngs=nnx.Rngs(0)), nnx.Param, Constant
        )
        # The output of a new network is zero.
        parameters = jax.tree.map(
            lambda x: x + 0.02 * jnp.cos(jnp.arange(x.size).reshape(x.shape)), parameters
        )

        def score(parameters):
            out = nnx.merge(graphdef, parameters, constants)(*inputs)
            return jnp.mean(out * weight), out

        (_, out), gradient = jax.jit(jax.value_and_grad(score, has_aux=True))(parameters)
        return out, jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])

    actual = run("bfloat16")
    with jax.default_matmul_precision("highest"):
        expected = run("float32")
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) < 3e-2


def test_the_forward_pass_in_float32_matches_golden_data():
    data = golden_data.load("a_shared")
    latent, t = jnp.asarray(data["in/audio_latent"]), jnp.asarray(data["in/t"])
    with jax.default_matmul_precision("highest"):
        out = nnx.jit(golden_data.model("a_shared"))(latent, *golden_data.conditions("a_shared"), t)
    assert relative_error(out, data["out/flow"]) < 2e-5
