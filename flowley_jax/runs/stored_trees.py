"""Trees of arrays in Orbax checkpoints: stored by leaf name, and verified by checksums when they are read."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from flowley_jax.common.trees import describe_leaves, differences, named_leaves
from flowley_jax.errors import FlowleyError

_UINTS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
_SHOWN_CHARACTERS = 200


def checksums(tree: Any) -> dict[str, int]:
    """Return the sum modulo 2³² of every leaf's machine words, by the leaf's name.

    Collective: every process must call this. The sums are integers, so they do not depend on the order of
    addition, and each device adds up its own shards. A single changed word, or a missing block, changes the
    sum.
    """
    leaves = named_leaves(tree)
    meshes = {leaf.sharding.mesh for leaf in leaves.values() if isinstance(leaf.sharding, NamedSharding)}
    replicated = NamedSharding(meshes.pop(), PartitionSpec()) if meshes else None
    names = sorted(leaves)
    sums = jax.jit(_word_sums, out_shardings=replicated)([leaves[name] for name in names])
    return dict(zip(names, jax.device_get(sums).tolist(), strict=True))


def _word_sums(leaves: list[jax.Array]) -> jax.Array:
    def word_sum(leaf):
        words = jax.lax.bitcast_convert_type(leaf, _UINTS[leaf.dtype.itemsize])
        return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)

    return jnp.stack([word_sum(leaf) for leaf in leaves])


def abstract_leaves(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and shardings of a tree's leaves by name; unsharded leaves go to the first device."""
    return {name: _abstract(leaf) for name, leaf in named_leaves(tree).items()}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)


def load_item(
    checkpointer: ocp.training.Checkpointer,
    step: int,
    item: str,
    like: Any,
    *,
    sums: Mapping[str, int],
    stored: Mapping[str, Any],
) -> dict[str, jax.Array]:
    """Load one item of a checkpoint and verify it.

    Args:
      like: tree of arrays or shapes, with the structure and shardings to load.
      sums: checksums that were stored with the item.
      stored: shapes of the stored leaves by name.

    Returns: arrays by leaf name.

    Raises:
      FlowleyError: the item is damaged, or belongs to a network of other sizes.
    """
    folder = f"{checkpointer.directory}/{step}"
    abstract = abstract_leaves(like)
    lines = differences(describe_leaves(abstract), describe_leaves(stored))
    if lines:
        raise FlowleyError(
            "\n".join([f"{folder}: belongs to another network; {len(lines)} arrays differ:", *lines])
        )
    with reading(checkpointer, step):
        loaded = checkpointer.load_checkpointables(step, {item: abstract})[item]
    changed = [name for name, value in checksums(loaded).items() if value != sums.get(name)]
    if changed:
        raise FlowleyError(
            f"{folder}: damaged: {len(changed)} arrays of {item} differ from their stored checksums, "
            f"such as {changed[0]}"
        )
    return loaded


@contextlib.contextmanager
def writing(checkpointer: ocp.training.Checkpointer) -> Iterator[None]:
    """Turn the errors of a full or broken disk into one FlowleyError line."""
    try:
        yield
    except FlowleyError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        cause = re.search(r"([^:]+) \[os_error_code", str(error))
        reason = cause[1].strip() if cause else _shortened(error)
        raise FlowleyError(
            f"{checkpointer.directory}: a checkpoint cannot be written ({reason}); earlier ones are intact"
        ) from error


@contextlib.contextmanager
def reading(checkpointer: ocp.training.Checkpointer, step: int) -> Iterator[None]:
    """Turn the errors of a damaged checkpoint into one FlowleyError line.

    Orbax and TensorStore raise many kinds of exceptions for a damaged tree.
    """
    try:
        yield
    except Exception as error:
        raise FlowleyError(
            f"{checkpointer.directory}/{step}: damaged, or written by an earlier version "
            f"({_shortened(error)})"
        ) from error


def checkpoint_folder(checkpointer: ocp.training.Checkpointer, step: int) -> Path:
    """Return the folder of one step."""
    return Path(str(checkpointer.directory)) / str(step)


def _shortened(error: Exception) -> str:
    # These messages can be thousands of characters long.
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
