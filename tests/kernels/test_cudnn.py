"""The arguments that cuDNN gets, by JAX's own definition of its call; `tests/gpu` runs cuDNN itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowley_jax.errors import FlowleyError
from flowley_jax.kernels import cudnn
from flowley_jax.kernels.psca import SoftMask, api, psca
from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.model.attention import attention


def _inputs(queries: int, keys: int):
    draw = np.random.default_rng(queries)
    shapes = [(3, n, 2, 8) for n in (queries, keys, keys, queries)]
    return [jnp.asarray(draw.standard_normal(shape), jnp.float32) for shape in shapes]


def _mask(queries: int, keys: int, **changes) -> SoftMask:
    settings = {"video_fps": 8.0, "audio_fps": 8.0 * queries / keys, "window": 0, "fade_range": 4}
    return SoftMask(**{**settings, "fade": "cosine", **changes})


def _output_and_gradients(function, q, k, v, dout):
    out, vjp = jax.vjp(function, q, k, v)
    return out, *vjp(dout)


@pytest.fixture
def cudnn_by_xla(monkeypatch):
    """Let cuDNN accept every call, and XLA compute it."""
    original = jax.nn.dot_product_attention

    def by_xla(*arrays, implementation, **options):
        assert implementation == "cudnn"
        return original(*arrays, implementation="xla", **options)

    monkeypatch.setattr(cudnn, "check_supported", lambda *arrays: None)
    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)


@pytest.mark.usefixtures("cudnn_by_xla")
@pytest.mark.parametrize("lengths", [None, (13, 4, 9)])
@pytest.mark.parametrize(("queries", "keys"), [(12, 14), (11, 14), (12, 13), (11, 13)])
def test_odd_lengths_are_padded_without_an_effect_on_the_result(queries, keys, lengths):
    inputs = _inputs(queries, keys)
    key_lengths = None if lengths is None else jnp.asarray(lengths, jnp.int32)
    attend = functools.partial(attention, key_lengths=key_lengths)
    expected = _output_and_gradients(functools.partial(attend, implementation="xla"), *inputs)
    actual = _output_and_gradients(functools.partial(attend, implementation="cudnn"), *inputs)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.usefixtures("cudnn_by_xla")
@pytest.mark.parametrize(("queries", "keys"), [(30, 16), (29, 15)])
@pytest.mark.parametrize("window", [-1, 0, 2])
def test_psca_gives_cudnn_the_logarithm_of_its_mask(queries, keys, window):
    inputs = _inputs(queries, keys)
    attend = functools.partial(psca, mask=_mask(queries, keys, window=window), fade_scale=0.4)
    expected = _output_and_gradients(functools.partial(attend, implementation="xla"), *inputs)
    actual = _output_and_gradients(functools.partial(attend, implementation="cudnn"), *inputs)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.parametrize(
    ("platform", "capability", "dtype", "dim", "reason"),
    [
        ("cpu", 9.0, "bfloat16", 64, "the platform is cpu"),
        ("tpu", 9.0, "bfloat16", 64, "the platform is tpu"),
        ("gpu", 9.0, "float32", 64, "must be bfloat16 for cuDNN, not float32"),
        ("gpu", 9.0, "bfloat16", 60, "a multiple of 8 and at most 128 channels, not 60"),
        ("gpu", 9.0, "bfloat16", 136, "not 136"),
        ("gpu", 7.5, "bfloat16", 64, "needs compute capability 8.0; the GPU has 7.5"),
        ("gpu", 0.0, "bfloat16", 64, "the GPU has 0.0"),
    ],
)
def test_calls_that_cudnn_cannot_take_are_refused(platform, capability, dtype, dim, reason, monkeypatch):
    monkeypatch.setattr(cudnn, "platform_in_use", lambda: platform)
    monkeypatch.setattr(cudnn, "_compute_capability", lambda: capability)
    with pytest.raises(NotImplementedError, match=reason):
        cudnn.attend(*[jnp.zeros((1, 2, 1, dim), dtype)] * 3, scale=1.0)


def test_bfloat16_on_ampere_is_accepted(monkeypatch):
    monkeypatch.setattr(cudnn, "platform_in_use", lambda: "gpu")
    monkeypatch.setattr(cudnn, "_compute_capability", lambda: 8.0)
    cudnn.check_supported(*[jnp.zeros((1, 2, 1, 64), jnp.bfloat16)] * 3)


def test_a_named_implementation_never_falls_back():
    q, k, v, _ = _inputs(4, 6)
    with pytest.raises(FlowleyError, match="attention_implementation=cudnn: cuDNN needs a GPU"):
        attention(q, k, v, implementation="cudnn")
    attend = functools.partial(psca, q, k, v, fade_scale=1.0, implementation="cudnn")
    with pytest.raises(FlowleyError, match=r"implementation='cudnn'\): cuDNN needs a GPU"):
        attend(mask=_mask(4, 6))
    with pytest.raises(FlowleyError, match=r"mask\.floor=0\.0, the hard cut"):
        attend(mask=_mask(4, 6, floor=0.0))
    with pytest.raises(FlowleyError, match="interpret=True: cuDNN's kernels cannot be interpreted"):
        attend(mask=_mask(4, 6), interpret=True)


def test_every_attention_of_the_network_uses_cudnn_where_it_can(monkeypatch):
    calls = []

    def record(q, k, v, *, scale, key_lengths=None, bias=None):
        calls.append((q.shape[1], k.shape[1], key_lengths is not None, bias is not None))
        return q

    monkeypatch.setattr(cudnn, "attend", record)
    monkeypatch.setattr(api, "platform_in_use", lambda: "gpu")
    config = ModelConfig(width=32, num_heads=4, multi_depth=2, single_depth=3, layers="unrolled")
    model = nnx.eval_shape(lambda: Flowley(config, rngs=nnx.Rngs(0)))
    shapes = [(2, 31, config.audio_dim), (2, 8, config.video_dim), (2, 7, config.text_dim), (2,), (2,)]
    dtypes = (jnp.float32, jnp.float32, jnp.float32, jnp.int32, jnp.float32)
    inputs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    nnx.eval_shape(lambda model, *inputs: model(*inputs), model, *inputs)
    joint = (46, 46, True, False)
    single_stream = [(31, 31, False, False), (31, 7, False, False), (31, 8, False, True)]
    assert sorted(calls) == sorted([joint] * 2 + single_stream * 3)
