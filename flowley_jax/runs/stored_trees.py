"""Trees of arrays in Orbax checkpoints: stored by leaf name, and verified by checksums when they are read."""

import contextlib
import errno
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from flowley_jax.common.trees import describe_leaves, differences, named_leaves, summary
from flowley_jax.errors import FlowleyError

log = logging.getLogger(__name__)
_UINTS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
_SHOWN_CHARACTERS = 200
# Waits before a read that failed for a passing reason is tried again.
RETRY_SECONDS = (1.0, 4.0)
# A checkpoint with a missing part is damaged.
_MISSING = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
# Codes of TensorStore and XLA for anything but wrong bytes.
_SYSTEM_STATUS = (
    "RESOURCE_EXHAUSTED",
    "PERMISSION_DENIED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "UNAUTHENTICATED",
)


class DamagedError(FlowleyError):
    """The bytes of a checkpoint are wrong, or some of them are missing."""


class UnreadableError(FlowleyError):
    """The disk, the network or the memory does not allow a checkpoint to be read now; it may be intact."""


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
    checkpointer: ocp.training.Checkpointer, step: int, item: str, like: Any
) -> dict[str, jax.Array]:
    """Load one item of a checkpoint and verify it; a read that fails for a passing reason is tried again.

    Args:
      like: tree of arrays or shapes, with the structure and shardings to load.

    Returns: arrays by leaf name.

    Raises:
      FlowleyError: the item is damaged, cannot be read, or belongs to a network of other sizes.
    """
    for seconds in RETRY_SECONDS:
        try:
            return _load_once(checkpointer, step, item, like)
        except UnreadableError as error:
            log.warning("%s; trying again", error)
            time.sleep(seconds)
    return _load_once(checkpointer, step, item, like)


def _load_once(
    checkpointer: ocp.training.Checkpointer, step: int, item: str, like: Any
) -> dict[str, jax.Array]:
    info = read_info(checkpointer, step)
    check_shapes(checkpointer, step, info, item, like)
    loaded = read_arrays(checkpointer, step, item, like)
    verify(checkpointer, step, loaded, info.custom_metadata["checksums"][item], item)
    return loaded


def read_info(checkpointer: ocp.training.Checkpointer, step: int) -> Any:
    """Return Orbax's metadata of one step. Not collective.

    Raises:
      DamagedError, UnreadableError: see there.
    """
    folder = checkpoint_folder(checkpointer, step)
    with reading(checkpointer, step):
        # Orbax takes any error for missing metadata.
        _check_access(folder)
        info: Any = ocp.checkpointables_metadata(str(folder))
        if not isinstance(info.custom_metadata, Mapping) or "checksums" not in info.custom_metadata:
            raise ValueError("its metadata is missing")
        return info


def _check_access(folder: Path) -> None:
    for directory, _, names in os.walk(folder, onerror=_raise):
        for name in names:
            with open(Path(directory) / name, "rb") as file:
                file.read(1)


def _raise(error: OSError) -> None:
    raise error


def check_shapes(checkpointer: ocp.training.Checkpointer, step: int, info: Any, item: str, like: Any) -> None:
    """Compare the stored arrays of an item with those of `like`. Not collective.

    Raises:
      DamagedError: the item is missing.
      FlowleyError: it belongs to a network of other sizes; the message has the first arrays that differ.
    """
    with reading(checkpointer, step):
        stored = info.metadata[item]
    if stored is None:
        # Reading the arrays will tell the reason.
        return
    lines = differences(describe_leaves(named_leaves(like)), describe_leaves(dict(stored)))
    if lines:
        folder = checkpoint_folder(checkpointer, step)
        raise FlowleyError(f"{folder}: belongs to another network; {summary(lines, 'arrays')}")


def read_arrays(
    checkpointer: ocp.training.Checkpointer, step: int, item: str, like: Any
) -> dict[str, jax.Array]:
    """Return the arrays of an item by leaf name, unverified.

    This process waits for no other one, even if one of them fails. But all must read equally often: Orbax
    counts, and its later saves agree on the count.

    Raises:
      DamagedError, UnreadableError: see there.
    """
    process = jax.process_index()
    alone = ocp.Context(
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=process, active_processes={process}
        )
    )
    with reading(checkpointer, step), alone:
        folder = checkpoint_folder(checkpointer, step)
        return ocp.load_checkpointables(str(folder), {item: abstract_leaves(like)})[item]


def verify(
    checkpointer: ocp.training.Checkpointer,
    step: int,
    loaded: Mapping[str, jax.Array],
    sums: Mapping[str, int],
    item: str,
) -> None:
    """Compare arrays with the checksums that were stored with them. Collective, see `checksums`.

    Raises:
      DamagedError: they differ.
    """
    changed = [name for name, value in checksums(loaded).items() if value != sums.get(name)]
    if changed:
        raise DamagedError(
            f"{checkpoint_folder(checkpointer, step)}: damaged: {len(changed)} arrays of {item} differ from "
            f"their stored checksums, such as {changed[0]}"
        )


@contextlib.contextmanager
def writing(checkpointer: ocp.training.Checkpointer) -> Iterator[None]:
    """Turn the errors of a full or broken disk into one FlowleyError line."""
    try:
        yield
    except FlowleyError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise FlowleyError(
            f"{checkpointer.directory}: a checkpoint cannot be written ({_reason(error)}); earlier ones are "
            "intact"
        ) from error


@contextlib.contextmanager
def reading(checkpointer: ocp.training.Checkpointer, step: int) -> Iterator[None]:
    """Turn the errors of reading a checkpoint into one FlowleyError line: DamagedError or UnreadableError.

    Orbax and TensorStore raise many kinds of exceptions for a damaged tree.
    """
    try:
        yield
    except FlowleyError:
        raise
    except Exception as error:
        folder = checkpoint_folder(checkpointer, step)
        if not folder.is_dir() or _is_of_the_system(error):
            raise UnreadableError(f"{folder}: cannot be read now ({_reason(error)})") from error
        raise DamagedError(
            f"{folder}: damaged, or written by an earlier version ({_shortened(error)})"
        ) from error


def _is_of_the_system(error: BaseException | None) -> bool:
    """Return whether disk, network or memory is the cause of an error, rather than wrong bytes."""
    while error is not None:
        if isinstance(error, OSError) and error.errno not in _MISSING:
            return True
        if isinstance(error, MemoryError) or any(word in str(error) for word in _SYSTEM_STATUS):
            return True
        code = re.search(r"os_error_code='?(\d+)", str(error))
        if code and int(code[1]) not in _MISSING:
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: Exception) -> str:
    cause = re.search(r"(?:^|:)([^:]+) \[os_error_code", str(error))
    return cause[1].strip() if cause else _shortened(error)


def checkpoint_folder(checkpointer: ocp.training.Checkpointer, step: int) -> Path:
    """Return the folder of one step."""
    return Path(str(checkpointer.directory)) / str(step)


def _shortened(error: Exception) -> str:
    # These messages can be thousands of characters long.
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
