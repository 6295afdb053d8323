"""Coupling on a mesh of eight simulated devices gives the same pairs as on one."""

import launching
import pytest

pytestmark = pytest.mark.scale

COUPLED = """
import jax, jax.numpy as jnp, numpy as np
from flowley_jax.config import MeshConfig
from flowley_jax.flow.coupling import immiscible_assignment
from flowley_jax.training.sharding import Layout, make_mesh
from flowley_jax.training.step import couple_noise

def check(batch, group, mesh, *, exchange):
    layout = Layout(make_mesh(MeshConfig(**mesh)), "float32")
    data, noise = (np.random.default_rng(batch + i).normal(size=(batch, 5, 3)).astype("f") for i in range(2))
    expected = noise[immiscible_assignment(jnp.asarray(data), jnp.asarray(noise), group=group)]
    @jax.jit
    def program(data, noise):
        with layout.activate():
            return couple_noise(data, noise, group=group, layout=layout)

    batch = layout.shard_batch((data, noise))
    coupled = program(*batch)
    np.testing.assert_array_equal(coupled, expected)
    assert coupled.sharding.is_equivalent_to(batch[0].sharding, 3), coupled.sharding
    text = program.lower(*batch).compile().as_text()
    assert ("all-gather" in text) == exchange
    assert "all-reduce" not in text

# Groups within a device, one group over two devices, over all, and devices with rows of two or three groups.
check(24, 3, dict(fsdp=8), exchange=False)
check(48, 3, dict(data=4, fsdp=2), exchange=False)
check(24, 6, dict(data=2, fsdp=4), exchange=True)
check(24, 256, dict(data=8), exchange=True)
check(48, 4, dict(fsdp=8), exchange=True)
check(40, 4, dict(fsdp=8), exchange=True)
check(24, 4, dict(data=2, fsdp=2, tensor=2), exchange=True)
# A batch that the mesh does not divide is replicated.
check(20, 5, dict(data=8), exchange=False)
"""


def test_a_mesh_couples_as_one_device_does():
    launching.run_script(COUPLED, devices=8)
