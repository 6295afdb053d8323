"""On an NVIDIA GPU: fused attention, the auction, and the network in bfloat16 beside float32 on the CPU.

`make test-gpu` runs these; `make test` leaves them out.
"""

import dataclasses

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_data import relative_error
from scipy.optimize import linear_sum_assignment

from flowley_jax.kernels import cudnn
from flowley_jax.kernels.auction import assign
from flowley_jax.kernels.psca import psca
from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.model.attention import attention
from flowley_jax.model.flowley import Constant

pytestmark = pytest.mark.gpu


def _inputs(queries: int, keys: int):
    draw = np.random.default_rng(queries + keys)
    shapes = [(4, n, 8, 64) for n in (queries, keys, keys, queries)]
    return [jnp.asarray(draw.standard_normal(shape), jnp.bfloat16) for shape in shapes]


def _both(function, q, k, v, cotangent):
    def run(q, k, v, cotangent):
        out, vjp = jax.vjp(function, q, k, v)
        return out, *vjp(cotangent)

    return [np.asarray(x, np.float32) for x in jax.jit(run)(q, k, v, cotangent)]


def _exact(function, *inputs):
    """In float32, with all digits of the products."""
    with jax.default_matmul_precision("highest"):
        return _both(function, *(x.astype(jnp.float32) for x in inputs))


@pytest.mark.parametrize("lengths", [None, (391, 350, 315, 320)])
@pytest.mark.parametrize(("queries", "keys"), [(391, 391), (250, 250), (250, 77)])
def test_fused_attention(queries, keys, lengths):
    inputs = _inputs(queries, keys)
    assert cudnn.obstacle(*inputs[:3]) is None
    key_lengths = None if lengths is None else jnp.minimum(jnp.asarray(lengths, jnp.int32), keys)
    found = _both(lambda *x: attention(*x, implementation="cudnn", key_lengths=key_lengths), *inputs)
    expected = _exact(lambda *x: attention(*x, implementation="xla", key_lengths=key_lengths), *inputs)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 2e-2


@pytest.mark.parametrize("fade_scale", [1.0, 0.5, 0.0])
@pytest.mark.parametrize(("queries", "keys"), [(250, 64), (345, 63)])
def test_fused_psca(queries, keys, fade_scale):
    inputs = _inputs(queries, keys)
    options = {
        "fade_scale": fade_scale,
        "video_fps": 8.0,
        "audio_fps": 8.0 * queries / keys,
        "window": 0,
        "fade_range": 4,
        "fade": "cosine",
    }
    found = _both(lambda *x: psca(*x, **options, implementation="cudnn"), *inputs)
    expected = _exact(lambda *x: psca(*x, **options, implementation="xla"), *inputs)
    for a, b in zip(found, expected, strict=True):
        # Where a single frame is read, the gradient of q is what is left of terms of order one.
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-2 * max(1.0, float(np.abs(b).max())))


def test_auction():
    draw = np.random.default_rng(0)
    costs = draw.normal(100.0, 1.0, (2, 256, 256)).astype(np.float32)
    for matrix, chosen in zip(costs, np.asarray(jax.jit(assign)(costs)), strict=True):
        assert sorted(chosen) == list(range(256))
        best = matrix[linear_sum_assignment(matrix)].sum(dtype=np.float64)
        assert matrix[np.arange(256), chosen].sum(dtype=np.float64) == pytest.approx(best, rel=1e-6)


def test_network_and_gradient():
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
        # A fresh network answers with zeros.
        parameters = jax.tree.map(
            lambda x: x + 0.02 * jnp.cos(jnp.arange(x.size).reshape(x.shape)), parameters
        )

        def score(parameters):
            out = nnx.merge(graphdef, parameters, constants)(*inputs)
            return jnp.mean(out * weight), out

        (_, out), gradient = jax.jit(jax.value_and_grad(score, has_aux=True))(parameters)
        return out, jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])

    found = run("bfloat16")
    with jax.default_matmul_precision("highest"):
        expected = run("float32")
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 3e-2


def test_golden_forward_in_float32():
    data = golden_data.load("a_shared")
    latent, t = jnp.asarray(data["in/audio_latent"]), jnp.asarray(data["in/t"])
    with jax.default_matmul_precision("highest"):
        out = nnx.jit(golden_data.model("a_shared"))(latent, *golden_data.conditions("a_shared"), t)
    assert relative_error(out, data["out/flow"]) < 2e-5
