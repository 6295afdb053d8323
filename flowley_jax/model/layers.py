"""Basic layers: linear maps and convolutions with their initialisers, normalisation, gated nets, dropout.

Initial values follow the published model: Xavier-uniform linear weights with zero biases, and PyTorch's
default for convolutions.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from flowley_jax.common.devices import platform_in_use
from flowley_jax.model.config import AdalnInit
from flowley_jax.model.recompute import recomputed

Key = jax.Array
# Draws initial values from a key, a shape and a type.
Initializer = Callable[..., Array]

LAYER_NORM_EPSILON = 1e-5
RMS_NORM_EPSILON = 1e-6

xavier_uniform = jax.nn.initializers.xavier_uniform()


class Linear(nnx.Module):
    """y = x W + b over the last axis; W is (in, out), float32, cast to the compute type when used."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rngs: nnx.Rngs,
        use_bias: bool = True,
        dtype: DTypeLike,
        init: Initializer = xavier_uniform,
    ):
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if use_bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        # One plain matrix product: XLA:CPU runs the batched form, and above all its gradient, half as fast.
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ self.kernel[...].astype(self.dtype)
        y = rows.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + per_channel(self.bias[...], y)


def kaiming_uniform(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Draw a convolution kernel (kernel, in, out) from U(±1/√fan_in): Kaiming-uniform with a = √5."""
    return _uniform(key, shape, dtype, fan_in=shape[0] * shape[1])


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike, *, fan_in: int) -> Array:
    bound = 1.0 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv1d(nnx.Module):
    """Convolution over time with zero "same" padding; the kernel is (kernel, in, out).

    Args:
      init: initialiser of the kernel.
      bias_init: initialiser of the bias; None draws it from U(±1/√fan_in).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        rngs: nnx.Rngs,
        use_bias: bool = True,
        dtype: DTypeLike,
        init: Initializer = kaiming_uniform,
        bias_init: Initializer | None = None,
    ):
        self.kernel = nnx.Param(init(rngs.params(), (kernel, inputs, outputs), jnp.float32))
        bias_init = bias_init or functools.partial(_uniform, fan_in=kernel * inputs)
        self.bias = nnx.Param(bias_init(rngs.params(), (outputs,), jnp.float32)) if use_bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        y = convolution(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y if self.bias is None else y + per_channel(self.bias[...], y)


def convolution(x: Float[Array, "B T I"], kernel: Float[Array, "K I O"]) -> Float[Array, "B T O"]:
    """Convolve over time with zero "same" padding; an even K pads one more zero at the end."""
    return _conv_with_matmul_gradient(x, kernel) if platform_in_use() == "cpu" else _conv(x, kernel)


def _conv(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, window_strides=(1,), padding="SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )


@jax.custom_vjp
def _conv_with_matmul_gradient(x, kernel):
    return _conv(x, kernel)


def _conv_forward(x, kernel):
    return _conv(x, kernel), (x, kernel)


def _conv_backward(residuals, cotangent):
    # XLA:CPU convolves with the mirrored kernel at four fifths of the speed of one matrix product.
    x, kernel = residuals
    batch, length, outputs = cotangent.shape
    taps, inputs, _ = kernel.shape
    rows, matrix = cotangent.reshape(-1, outputs), kernel.reshape(taps * inputs, outputs)
    per_tap = jnp.einsum("no,mo->nm", rows, matrix).reshape(batch, length, taps, inputs)
    before = (taps - 1) // 2
    padded = jnp.pad(per_tap, ((0, 0), (taps - 1 - before, before), (0, 0), (0, 0)))
    x_gradient = sum(padded[:, taps - 1 - tap :][:, :length, tap] for tap in range(taps))
    _, kernel_vjp = jax.vjp(lambda kernel: _conv(x, kernel), kernel)
    return x_gradient, *kernel_vjp(cotangent)


_conv_with_matmul_gradient.defvjp(_conv_forward, _conv_backward)


class GatedMlp(nnx.Module):
    """w2(dropout(silu(w1 x) · w3 x)) without biases: a gated feed-forward net.

    Args:
      kernel: None for linear maps (GatedMLP), or a kernel size for convolutions over time (GatedConvMLP).
    """

    def __init__(
        self,
        width: int,
        inner: int,
        *,
        kernel: int | None = None,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        def projection(inputs: int, outputs: int) -> Linear | Conv1d:
            if kernel is None:
                return Linear(inputs, outputs, use_bias=False, rngs=rngs, dtype=dtype)
            return Conv1d(inputs, outputs, kernel, use_bias=False, rngs=rngs, dtype=dtype)

        self.w1 = projection(width, inner)
        self.w3 = projection(width, inner)
        self.w2 = projection(inner, width)
        self.dropout = dropout

    @jax.named_scope("gated_mlp")
    def __call__(self, x: Float[Array, "... D"], *, key: Key | None = None) -> Float[Array, "... D"]:
        gate, value = self.w1(x), self.w3(x)
        keep = keep_mask(key, value.shape, self.dropout)
        gated = recomputed(functools.partial(_gated, self.dropout))
        return self.w2(gated(gate, value, keep))


def _gated(rate: float, gate: Array, value: Array, keep: Bool[Array, "B ..."] | None) -> Array:
    return masked(jax.nn.silu(gate) * value, keep, rate)


class RMSNorm(nnx.Module):
    """scale · x / (rms(x) + ε) over the last axis; ε is added outside the root, as in the published model."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        y = x.astype(jnp.float32)
        rms = safe_sqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True))
        return (per_channel(self.scale[...], y) * y / (rms + RMS_NORM_EPSILON)).astype(x.dtype)


class Modulation(nnx.Module):
    """adaLN: SiLU and a linear map from the condition c to `parts` vectors of width D."""

    def __init__(self, width: int, parts: int, *, rngs: nnx.Rngs, dtype: DTypeLike, init: Initializer):
        self.linear = Linear(width, parts * width, rngs=rngs, dtype=dtype, init=init)
        self.parts = parts

    @jax.named_scope("adaln")
    def __call__(self, condition: Float[Array, "B D"]) -> list[Float[Array, "B 1 D"]]:
        return jnp.split(self.linear(jax.nn.silu(condition))[:, None, :], self.parts, axis=-1)


def adaln_initializer(kind: AdalnInit) -> Initializer:
    """Return the initialiser of the blocks' adaLN maps: N(0, 0.001), or zero."""
    return jax.nn.initializers.normal(0.001) if kind == "gaussian" else jax.nn.initializers.zeros


def modulated_norm(
    x: Float[Array, "B T D"], shift: Float[Array, "B 1 D"], scale: Float[Array, "B 1 D"]
) -> Float[Array, "B T D"]:
    """Return LN(x)·(1 + scale) + shift; LN has no parameters and float32 statistics."""
    y = x.astype(jnp.float32)
    centred = y - jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normed = (centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)).astype(x.dtype)
    return normed * (1 + scale) + shift


def dropout(x: Array, rate: float, key: Key | None) -> Array:
    """Apply inverted dropout to x (B, …) with (B,) keys; return x itself without keys or at rate 0."""
    return masked(x, keep_mask(key, x.shape, rate), rate)


def keep_mask(key: Key | None, shape: tuple[int, ...], rate: float) -> Bool[Array, "B ..."] | None:
    """Draw which values of this shape (B, …) dropout keeps, with (B,) keys; None if it keeps all."""
    if key is None or rate == 0.0:
        return None
    return jax.vmap(lambda item_key: _random_16_bits(item_key, shape[1:]))(key) >= round(rate * 2**16)


def masked(x: Array, keep: Bool[Array, "B ..."] | None, rate: float) -> Array:
    """Return x / (1 − rate) where it is kept, and 0 elsewhere; x itself without a mask."""
    return x if keep is None else jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def _random_16_bits(key: Key, shape: tuple[int, ...]) -> Array:
    # Two draws from each 32 random bits, because generating bits is most of dropout's cost on a CPU. The two
    # halves are concatenated, not interleaved: a TPU pads an axis of two to its 128 lanes.
    size = math.prod(shape)
    bits = jax.random.bits(key, ((size + 1) // 2,), jnp.uint32)
    halves = jnp.concatenate([bits & 0xFFFF, bits >> 16]).astype(jnp.uint16)
    return halves[:size].reshape(shape)


def fold(key: Key | None, stream: Any) -> Key | None:
    """Return the (B,) keys of one random stream, or None when there is no randomness.

    Args:
      stream: number of the stream; an integer that may be traced.
    """
    return None if key is None else jax.vmap(jax.random.fold_in, in_axes=(0, None))(key, stream)


def safe_sqrt(x: Array) -> Array:
    """Return √x with gradient 0 at 0, where the plain root has an infinite gradient."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def per_channel(values: Array, x: Array) -> Array:
    """Reshape one value per channel to the rank of x, in the type of x."""
    return values.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
