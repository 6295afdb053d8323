"""Checksums of arrays that do not depend on the mesh they lie on."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from flowley_jax.training.sharding import path_name

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def checksums(tree: Any) -> dict[str, int]:
    """The sum modulo 2³² of every leaf's machine words, by the leaf's name; all processes have to ask.

    Sums of integers do not depend on their order, so a device adds up what it holds. No single changed word,
    and no block that is missing, leaves the sum as it was.
    """
    leaves = {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    meshes = {leaf.sharding.mesh for leaf in leaves.values() if isinstance(leaf.sharding, NamedSharding)}
    whole = NamedSharding(meshes.pop(), PartitionSpec()) if meshes else None
    names = sorted(leaves)
    sums = jax.jit(_sums, out_shardings=whole)([leaves[name] for name in names])
    return dict(zip(names, jax.device_get(sums).tolist(), strict=True))


def _sums(leaves: list[jax.Array]) -> jax.Array:
    def of(leaf):
        words = jax.lax.bitcast_convert_type(leaf, _WORDS[leaf.dtype.itemsize])
        return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)

    return jnp.stack([of(leaf) for leaf in leaves])
