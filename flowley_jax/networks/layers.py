"""Layers of published networks, with PyTorch's names; linear weights are (in, out)."""

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


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """Return x W + b by one matrix product over all rows, which XLA:CPU runs faster than a batched one."""
    rows = x.reshape(-1, x.shape[-1]) @ weight.astype(x.dtype)
    return (rows + per_channel(bias, rows)).reshape(*x.shape[:-1], -1)
