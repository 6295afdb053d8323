"""Immiscible coupling on a mesh: every device pairs its own latents."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from flowley_jax.flow.coupling import group_size, immiscible_assignment
from flowley_jax.training.sharding import BATCH_AXES, Layout


def paired_noise(
    data: Float[Array, "B Ta C"], noise: Float[Array, "B Ta C"], *, group: int, layout: Layout
) -> Float[Array, "B Ta C"]:
    """The noise of each latent, on any mesh the one that `immiscible_assignment` chooses.

    An auction has hundreds of rounds, in each of which its devices would wait for each other: every
    device holds those for the groups that its part of the batch belongs to. Groups that lie in one part never
    leave it.
    """
    batch = len(data)
    size = group_size(batch, group)
    if layout.mesh.size == 1:
        return noise[immiscible_assignment(data, noise, group=size)]
    split, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
    if batch % layout.batch_parts:
        given, returned, part = whole, whole, batch
    else:
        part = batch // layout.batch_parts
        given, returned = (whole if part % size else split), split
    pair = functools.partial(_pair_part, size=size, part=part)
    return jax.shard_map(pair, in_specs=(given, given), out_specs=returned, check_vma=False)(data, noise)


def _pair_part(data, noise, *, size: int, part: int):
    """Noise for one device's `part` latents, of all that it is given."""
    if part % size == 0:
        return noise[immiscible_assignment(data, noise, group=size)]
    groups = len(data) // size
    needed = 1 if size % part == 0 else min(groups, part // size + 2)
    first_row = jax.lax.axis_index(BATCH_AXES) * part
    start = size * jnp.minimum(first_row // size, groups - needed)
    data, noise = (jax.lax.dynamic_slice_in_dim(x, start, needed * size) for x in (data, noise))
    paired = noise[immiscible_assignment(data, noise, group=size)]
    return jax.lax.dynamic_slice_in_dim(paired, first_row - start, part)
