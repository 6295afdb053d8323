"""Coupling on a mesh of eight pretended devices: the same pairs as on one."""

import launching
import pytest

pytestmark = pytest.mark.scale

PAIRED = """
import jax, jax.numpy as jnp, numpy as np
from flowley_jax.config import MeshConfig
from flowley_jax.flow.coupling import immiscible_assignment
from flowley_jax.training.pairing import paired_noise
from flowley_jax.training.sharding import Layout, make_mesh

def check(batch, group, mesh, *, exchange):
    layout = Layout(make_mesh(MeshConfig(**mesh)), "float32")
    data, noise = (np.random.default_rng(batch + i).normal(size=(batch, 5, 3)).astype("f") for i in range(2))
    expected = noise[immiscible_assignment(jnp.asarray(data), jnp.asarray(noise), group=group)]
    program = layout.jit(lambda data, noise: paired_noise(data, noise, group=group, layout=layout))
    placed = layout.place((data, noise))
    found = program(*placed)
    np.testing.assert_array_equal(found, expected)
    assert found.sharding.is_equivalent_to(placed[0].sharding, 3), found.sharding
    text = program.lower(*placed).compile().as_text()
    assert ("all-gather" in text) == exchange
    assert "all-reduce" not in text

# Groups at home, one group over two devices, over all, groups of which a device has parts of two or three.
check(24, 3, dict(fsdp=8), exchange=False)
check(48, 3, dict(data=4, fsdp=2), exchange=False)
check(24, 6, dict(data=2, fsdp=4), exchange=True)
check(24, 256, dict(data=8), exchange=True)
check(48, 4, dict(fsdp=8), exchange=True)
check(40, 4, dict(fsdp=8), exchange=True)
check(24, 4, dict(data=2, fsdp=2, tensor=2), exchange=True)
# A batch that the mesh does not divide stays whole.
check(20, 5, dict(data=8), exchange=False)
"""


def test_a_mesh_pairs_as_one_device_does():
    launching.run_script(PAIRED, devices=8)
