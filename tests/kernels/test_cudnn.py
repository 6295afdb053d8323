"""What is handed to cuDNN, by JAX's own definition of its call; `tests/gpu` runs cuDNN itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowley_jax.errors import FlowleyError
from flowley_jax.kernels import cudnn
from flowley_jax.kernels.psca import api, psca
from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.model.attention import attention


def _inputs(queries: int, keys: int):
    draw = np.random.default_rng(queries)
    shapes = [(3, n, 2, 8) for n in (queries, keys, keys, queries)]
    return [jnp.asarray(draw.standard_normal(shape), jnp.float32) for shape in shapes]


def _both(function, q, k, v, cotangent):
    out, vjp = jax.vjp(function, q, k, v)
    return out, *vjp(cotangent)


@pytest.mark.parametrize("lengths", [None, (13, 4, 9)])
@pytest.mark.parametrize(("queries", "keys"), [(12, 14), (11, 14), (12, 13), (11, 13)])
def test_even_lengths_are_made_up_and_cut_off_again(queries, keys, lengths):
    inputs = _inputs(queries, keys)
    key_lengths = None if lengths is None else jnp.asarray(lengths, jnp.int32)
    expected = _both(
        lambda *x: attention(*x, implementation="xla", key_lengths=key_lengths),
        *inputs,
    )
    found = _both(
        lambda *x: cudnn.attend(*x, scale=8**-0.5, key_lengths=key_lengths, implementation="xla"), *inputs
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize(("queries", "keys"), [(30, 16), (29, 15)])
@pytest.mark.parametrize("window", [-1, 0, 2])
def test_psca_is_attention_with_the_logarithm_of_its_mask(queries, keys, window, monkeypatch):
    inputs = _inputs(queries, keys)
    options = {
        "fade_scale": 0.4,
        "video_fps": 8.0,
        "audio_fps": 8.0 * queries / keys,
        "window": window,
        "fade_range": 4,
        "fade": "cosine",
    }
    expected = _both(lambda *x: psca(*x, **options, implementation="xla"), *inputs)
    monkeypatch.setattr(cudnn, "obstacle", lambda *arrays: None)
    fused = cudnn.attend
    monkeypatch.setattr(cudnn, "attend", lambda *x, **named: fused(*x, **named, implementation="xla"))
    found = _both(lambda *x: psca(*x, **options, implementation="cudnn"), *inputs)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.parametrize(
    ("platform", "capability", "dtype", "width", "reason"),
    [
        ("cpu", 9.0, "bfloat16", 64, "the platform is cpu"),
        ("tpu", 9.0, "bfloat16", 64, "the platform is tpu"),
        ("gpu", 9.0, "float32", 64, "in bfloat16, not float32"),
        ("gpu", 9.0, "bfloat16", 60, "a multiple of 8 and at most 128 channels, not 60"),
        ("gpu", 9.0, "bfloat16", 136, "not 136"),
        ("gpu", 7.5, "bfloat16", 64, "needs compute capability 8.0, the GPU has 7.5"),
        ("gpu", 0.0, "bfloat16", 64, "the GPU has 0.0"),
        ("gpu", 8.0, "bfloat16", 64, None),
    ],
)
def test_what_cudnn_cannot_take(platform, capability, dtype, width, reason, monkeypatch):
    monkeypatch.setattr(cudnn, "platform_in_use", lambda: platform)
    monkeypatch.setattr(cudnn, "_compute_capability", lambda: capability)
    found = cudnn.obstacle(*[jnp.zeros((1, 2, 1, width), dtype)] * 3)
    assert found is None if reason is None else reason in str(found)


def test_a_named_implementation_never_falls_back():
    q, k, v, _ = _inputs(4, 6)
    with pytest.raises(FlowleyError, match="attention_implementation=cudnn: cuDNN is for GPU"):
        attention(q, k, v, implementation="cudnn")
    options = {"video_fps": 8.0, "audio_fps": 8.0, "window": 0, "fade_range": 4, "fade": "cosine"}
    with pytest.raises(FlowleyError, match=r"implementation='cudnn'\): cuDNN is for GPU"):
        psca(q, k, v, fade_scale=1.0, **options, implementation="cudnn")
    with pytest.raises(FlowleyError, match="the hard cut"):
        psca(q, k, v, fade_scale=1.0, **options, mask_floor=0.0, implementation="cudnn")


def test_every_attention_of_the_network_asks_for_it(monkeypatch):
    calls = []

    def fused(q, k, v, *, scale, key_lengths=None, bias=None):
        calls.append((q.shape[1], k.shape[1], key_lengths is not None, bias is not None))
        return q

    monkeypatch.setattr(cudnn, "obstacle", lambda *arrays: None)
    monkeypatch.setattr(cudnn, "attend", fused)
    monkeypatch.setattr(api, "platform_in_use", lambda: "gpu")
    config = ModelConfig(width=32, num_heads=4, multi_depth=2, single_depth=3, layers="unrolled")
    model = nnx.eval_shape(lambda: Flowley(config, rngs=nnx.Rngs(0)))
    shapes = [(2, 31, config.audio_dim), (2, 8, config.video_dim), (2, 7, config.text_dim), (2,), (2,)]
    dtypes = (jnp.float32, jnp.float32, jnp.float32, jnp.int32, jnp.float32)
    inputs = [jax.ShapeDtypeStruct(*at) for at in zip(shapes, dtypes, strict=True)]
    nnx.eval_shape(lambda model, *inputs: model(*inputs), model, *inputs)
    joint = (46, 46, True, False)
    refining = [(31, 31, False, False), (31, 7, False, False), (31, 8, False, True)]
    assert sorted(calls) == sorted([joint] * 2 + refining * 3)
