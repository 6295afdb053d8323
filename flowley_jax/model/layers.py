"""The small parts: linear and convolution maps, normalisation, gated feed-forward nets, dropout."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.model import initializers
from flowley_jax.model.convolution import convolution

Key = jax.Array
LAYER_NORM_EPSILON = 1e-5
RMS_NORM_EPSILON = 1e-6


class Linear(nnx.Module):
    """y = x W + b over the last axis; W is (in, out), float32, cast to the compute type when used."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rngs: nnx.Rngs,
        use_bias=True,
        dtype,
        init=initializers.xavier_uniform,
    ):
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if use_bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        # One plain matrix product: XLA:CPU runs the batched form, and above all its gradient, half as fast.
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ self.kernel[...].astype(self.dtype)
        y = rows.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + per_channel(self.bias[...], y)


class Conv1d(nnx.Module):
    """Convolution over time with zero "same" padding; the kernel is (kernel, in, out)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        rngs: nnx.Rngs,
        use_bias=True,
        dtype,
        init=initializers.convolution_uniform,
        bias_init=initializers.uniform_bound,
    ):
        self.kernel = nnx.Param(init(rngs.params(), (kernel, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(bias_init(rngs.params(), (outputs,), kernel * inputs)) if use_bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        y = convolution(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y if self.bias is None else y + per_channel(self.bias[...], y)


class GatedMlp(nnx.Module):
    """w2(dropout(silu(w1 x) · w3 x)), bias-free; maps over time steps or convolutions over time.

    Args:
      kernel: None for linear maps (GatedMLP), a kernel size for GatedConvMLP.
    """

    def __init__(
        self, width: int, inner: int, *, kernel: int | None = None, dropout=0.0, rngs: nnx.Rngs, dtype
    ):
        def projection(inputs: int, outputs: int):
            if kernel is None:
                return Linear(inputs, outputs, use_bias=False, rngs=rngs, dtype=dtype)
            return Conv1d(inputs, outputs, kernel, use_bias=False, rngs=rngs, dtype=dtype)

        self.w1 = projection(width, inner)
        self.w3 = projection(width, inner)
        self.w2 = projection(inner, width)
        self.dropout = dropout

    def __call__(self, x: Float[Array, "... D"], *, key: Key | None = None) -> Float[Array, "... D"]:
        return self.w2(dropout(jax.nn.silu(self.w1(x)) * self.w3(x), self.dropout, key))


class RMSNorm(nnx.Module):
    """scale · x / (rms(x) + ε) over the last axis; ε stands outside the root (spec/model.md)."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        y = x.astype(jnp.float32)
        rms = safe_sqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True))
        return (per_channel(self.scale[...], y) * y / (rms + RMS_NORM_EPSILON)).astype(x.dtype)


class Modulation(nnx.Module):
    """adaLN: SiLU and a linear map of the condition c to `parts` vectors of width D."""

    def __init__(self, width: int, parts: int, *, rngs: nnx.Rngs, dtype, init):
        self.linear = Linear(width, parts * width, rngs=rngs, dtype=dtype, init=init)
        self.parts = parts

    def __call__(self, condition: Float[Array, "B D"]) -> list[Float[Array, "B 1 D"]]:
        return jnp.split(self.linear(jax.nn.silu(condition))[:, None, :], self.parts, axis=-1)


def modulated_norm(x: Float[Array, "B T D"], shift: Float[Array, "B 1 D"], scale: Float[Array, "B 1 D"]):
    """LN(x)·(1 + scale) + shift; LayerNorm without parameters, statistics in float32."""
    y = x.astype(jnp.float32)
    centred = y - jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normed = (centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)).astype(x.dtype)
    return normed * (1 + scale) + shift


def dropout(x: Array, rate: float, key: Key | None) -> Array:
    """Inverted dropout of x (B, …) by (B,) keys; without keys, or at rate 0, x itself."""
    if key is None or rate == 0.0:
        return x
    kept = jax.vmap(lambda item: _random_16_bits(item, x.shape[1:]))(key) >= round(rate * 2**16)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros_like(x))


def _random_16_bits(key: Key, shape: tuple[int, ...]) -> Array:
    # Two draws from each 32 random bits, whose making is most of dropout's cost on a CPU. Side by side, and
    # not as pairs: a TPU pads an axis of two to its 128 lanes.
    size = math.prod(shape)
    bits = jax.random.bits(key, ((size + 1) // 2,), jnp.uint32)
    halves = jnp.concatenate([bits & 0xFFFF, bits >> 16]).astype(jnp.uint16)
    return halves[:size].reshape(shape)


def fold(key: Key | None, index) -> Key | None:
    """The keys (B,) of the index-th part, or None when there is no randomness."""
    return None if key is None else jax.vmap(jax.random.fold_in, in_axes=(0, None))(key, index)


def safe_sqrt(x: Array) -> Array:
    """√x with gradient 0 at 0, where the plain root has an infinite one."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def per_channel(values: Array, x: Array) -> Array:
    """One value for each channel of x, of its type and rank."""
    return values.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
