"""Functions that are computed again: same values and gradients, and less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowley_jax.model.recompute import recomputed


def _weighted(scale, x, y, count):
    weights = jax.nn.softmax(x @ y.T)
    return scale * jnp.where(jnp.arange(weights.shape[-1]) < count, weights, 0.0) @ y


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_the_function(dtype):
    x, y = jax.random.normal(jax.random.key(0), (2, 40, 16), dtype)
    function = functools.partial(_weighted, 3.0)

    def loss(function):
        return lambda x, y: jnp.sum(jnp.square(function(x, y, jnp.asarray(30))))

    np.testing.assert_array_equal(recomputed(function)(x, y, 30), function(x, y, 30))
    # Outside of jit, each operation is a program of its own, so that both sides round alike.
    found = jax.grad(loss(recomputed(function)), argnums=(0, 1))(x, y)
    expected = jax.grad(loss(function), argnums=(0, 1))(x, y)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_backward_pass_of_a_compiled_program_needs_less_memory():
    def program(function):
        def loss(x):
            for _ in range(8):
                x = function(1.0, x, x, 1000)
            return x.sum()

        x = jax.ShapeDtypeStruct((1000, 16), jnp.float32)
        return jax.jit(jax.grad(loss)).lower(x).compile().memory_analysis().temp_size_in_bytes

    weights = 4 * 1000**2
    assert program(_weighted) > 8 * weights
    assert (
        program(lambda *arguments: recomputed(functools.partial(_weighted, 1.0))(*arguments[1:]))
        < 5 * weights
    )
