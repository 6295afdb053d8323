"""Layers of published networks, with PyTorch's names.

Linear weights are (in, out), and kernels (height, width, in, out).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.model.layers import per_channel

_TINY = 1e-12
_BATCH_EPSILON = 1e-5


class Linear(nnx.Module):
    """Linear map x W + b."""

    def __init__(self, inputs: int, outputs: int, *, use_bias: bool = True, rngs: nnx.Rngs):
        init = jax.nn.initializers.xavier_uniform()
        self.weight = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if use_bias else None

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        return linear(x, self.weight[...], None if self.bias is None else self.bias[...])


class Embedding(nnx.Module):
    """Table of vectors."""

    def __init__(self, rows: int, width: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (rows, width), jnp.float32))


class Mlp(nnx.Module):
    """Two linear maps with the exact GELU between them."""

    def __init__(self, width: int, inner: int, *, rngs: nnx.Rngs):
        self.fc1 = Linear(width, inner, rngs=rngs)
        self.fc2 = Linear(inner, width, rngs=rngs)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, with float32 statistics."""

    def __init__(self, width: int, *, epsilon: float = 1e-5):
        self.weight = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        y = x.astype(jnp.float32)
        centred = y - jnp.mean(y, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (normed * per_channel(self.weight[...], y) + per_channel(self.bias[...], y)).astype(x.dtype)


class BatchNorm(nnx.Module):
    """Normalisation of channels by stored statistics."""

    def __init__(self, width: int):
        self.weight, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))
        self.running_mean, self.running_var = nnx.Param(jnp.zeros(width)), nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        scale = self.weight[...] * jax.lax.rsqrt(self.running_var[...] + _BATCH_EPSILON)
        shift = self.bias[...] - self.running_mean[...] * scale
        return x * per_channel(scale, x) + per_channel(shift, x)


class Convolution(nnx.Module):
    """A 3×3 convolution that keeps the height and the width."""

    def __init__(self, before: int, after: int, *, use_bias: bool = True, rngs: nnx.Rngs):
        init = jax.nn.initializers.he_normal()
        self.weight = nnx.Param(init(rngs.params(), (3, 3, before, after), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((after,), jnp.float32)) if use_bias else None

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        y = jax.lax.conv_general_dilated(
            x,
            self.weight[...].astype(x.dtype),
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y if self.bias is None else y + per_channel(self.bias[...], y)


class PatchConvolution(nnx.Module):
    """A square convolution with a stride and without padding, from images to a grid of tokens."""

    def __init__(
        self, size: int, stride: int, before: int, after: int, *, use_bias: bool = True, rngs: nnx.Rngs
    ):
        init = jax.nn.initializers.lecun_normal()
        self.weight = nnx.Param(init(rngs.params(), (size, size, before, after), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((after,), jnp.float32)) if use_bias else None
        self.stride = stride

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        y = jax.lax.conv_general_dilated(
            x,
            self.weight[...].astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y if self.bias is None else y + per_channel(self.bias[...], y)


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """Return x W + b by one matrix product over all rows, which XLA:CPU runs faster than a batched one."""
    rows = x.reshape(-1, x.shape[-1]) @ weight.astype(x.dtype)
    if bias is not None:
        rows += per_channel(bias, rows)
    return rows.reshape(*x.shape[:-1], -1)


def attend(
    query: Float[Array, "*B Q D"],
    key: Float[Array, "*B K D"],
    value: Float[Array, "*B K D"],
    *,
    heads: int,
    bias: Float[Array, "*#B #H #Q K"] | None = None,
) -> Float[Array, "*B Q D"]:
    """Return multi-head attention with scores scaled by 1/√(D / heads), which are in float32.

    Args:
      query, key, value: inputs of all heads, head by head along the last axis.
      heads: number of heads H.
      bias: float32 numbers that are added to the scores.
    """

    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:-1], heads, -1)

    query, key, value = split(query), split(key), split(value)
    scale = math.sqrt(query.shape[-1])
    scores = jnp.einsum("...qhd,...khd->...hqk", query / scale, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores += bias
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    attended = jnp.einsum("...hqk,...khd->...qhd", weights, value)
    return attended.reshape(*attended.shape[:-2], -1)


def unit(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Return vectors of length 1 in the same directions; zeros stay."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), _TINY)
