"""Layers of published networks, with PyTorch's names.

Linear weights are (in, out), and kernels (height, width, in, out).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.model.layers import per_channel


class Linear(nnx.Module):
    """Linear map x W + b."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.xavier_uniform()
        self.weight = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        return linear(x, self.weight[...], self.bias[...])


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


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """Return x W + b by one matrix product over all rows, which XLA:CPU runs faster than a batched one."""
    rows = x.reshape(-1, x.shape[-1]) @ weight.astype(x.dtype)
    return (rows + per_channel(bias, rows)).reshape(*x.shape[:-1], -1)
