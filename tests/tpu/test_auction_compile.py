"""The auction's kernel, compiled by the TPU compiler without a TPU: make test-tpu."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.tpu_topologies import TOPOLOGIES, compile_on, costs
from flowley_jax.kernels.auction import MAX_SIZE_IN_VMEM, assign

pytestmark = pytest.mark.tpu


@pytest.mark.parametrize("generation", TOPOLOGIES)
@pytest.mark.parametrize(("groups", "size"), [(1, 256), (8, 256), (2, 24), (1, MAX_SIZE_IN_VMEM)])
def test_the_auction_is_one_kernel_in_vector_memory(generation, groups, size):
    matrices = jax.ShapeDtypeStruct((groups, size, size), jnp.float32)
    compiled = compile_on(generation, jax.jit(assign), [matrices])
    assert "tpu_custom_call" in compiled.as_text()
    assert 0 < costs(compiled)["kernel_vmem_bytes"] < 8 * 2**20


def test_larger_matrices_are_left_to_xla():
    size = MAX_SIZE_IN_VMEM + 1
    compiled = compile_on("v5e", jax.jit(assign), [jax.ShapeDtypeStruct((1, size, size), jnp.float32)])
    assert "tpu_custom_call" not in compiled.as_text()
