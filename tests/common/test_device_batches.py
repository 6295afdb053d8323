"""Batched application of a network, on one device and on several."""

import sys

import children
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowley_jax.common.device_batches import DeviceBatches, Replicated

ON_THREE_DEVICES = """
import jax, numpy as np
from flax import nnx
from flowley_jax.common.device_batches import DeviceBatches, Replicated
model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
replicated = Replicated(model)
shapes = []
def product(model, x):
    shapes.append(x.shape)
    return model(x)
batches = DeviceBatches(product, replicated, batch_size=8)
for count in (1, 4, 9, 20):
    x = np.random.default_rng(0).standard_normal((count, 3), np.float32)
    np.testing.assert_allclose(batches(x), model(x), rtol=1e-5, atol=1e-6)
assert all(len(leaf.sharding.device_set) == 3 for leaf in jax.tree.leaves(replicated.state))
assert sorted(set(shapes)) == [(3, 3), (6, 3), (9, 3)], shapes
"""


class Scale(nnx.Module):
    def __init__(self, factor: float):
        self.factor = nnx.Param(jnp.full((1, 1), factor))


@pytest.fixture(scope="module")
def replicated():
    return Replicated(Scale(3.0))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 9])
def test_any_number_of_rows_is_returned_in_order(replicated, count):
    batches = DeviceBatches(lambda model, x: {"y": model.factor[...] * x}, replicated, batch_size=4)
    x = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    np.testing.assert_array_equal(batches(x)["y"], 3 * x)


def test_few_programs_are_compiled_for_any_number_of_rows(replicated):
    sizes = []

    def record_size(model, x):
        sizes.append(len(x))
        return model.factor[...] * x

    batches = DeviceBatches(record_size, replicated, batch_size=4)
    for count in range(1, 14):
        batches(np.zeros((count, 1), np.float32))
    assert sorted(sizes) == [1, 2, 4]


def test_programs_of_one_model_share_its_weights(replicated):
    first, second = (DeviceBatches(lambda model, x: x, replicated, batch_size=1) for _ in range(2))
    pairs = zip(jax.tree.leaves(first._state), jax.tree.leaves(second._state), strict=True)
    assert all(a is b for a, b in pairs)


def test_rows_are_split_over_several_devices():
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "3"}
    result = children.run([sys.executable, "-c", ON_THREE_DEVICES], env=environment)
    assert result.returncode == 0, result.stderr
