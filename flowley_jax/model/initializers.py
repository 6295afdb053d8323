"""Initial values of the published model (spec/model.md, Initialisation)."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

xavier_uniform = jax.nn.initializers.xavier_uniform()
time_embedding_normal = jax.nn.initializers.normal(0.02)


def convolution_uniform(key, shape, dtype=jnp.float32):
    """Kaiming-uniform with a = √5 for kernels (kernel, in, out): U(±1/√fan_in)."""
    return uniform_bound(key, shape, shape[0] * shape[1], dtype)


def uniform_bound(key, shape, fan_in: int, dtype=jnp.float32):
    """U(±1/√fan_in), the convolution biases' distribution."""
    bound = 1.0 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def adaln_kernel(kind: Literal["gaussian", "zero"]):
    """Initialiser of the blocks' adaLN maps: N(0, 0.001), or zero."""
    return jax.nn.initializers.normal(0.001) if kind == "gaussian" else jax.nn.initializers.zeros


def zero_bias(key, shape, fan_in: int, dtype=jnp.float32):
    """Zeros, in place of `uniform_bound`."""
    del key, fan_in
    return jnp.zeros(shape, dtype)
