"""Names of the leaves of pytrees and of nested mappings, and differences between trees of arrays."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np


def path_name(path: tuple[Any, ...]) -> str:
    """Return the slash-separated path of a pytree leaf, such as `single_stream/0/out/kernel`.

    Args:
      path: key path, as `jax.tree.leaves_with_path` gives it.
    """
    keys = [getattr(part, "key", getattr(part, "name", getattr(part, "idx", None))) for part in path]
    return "/".join(map(str, keys))


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by their slash-separated paths, in the tree's order."""
    return {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def unnamed(leaves: Mapping[str, Any], like: Any) -> Any:
    """Return a tree with the structure of `like` from leaves by name, as `named_leaves` gives them."""
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in named_leaves(like)])


def flatten_mapping(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted names and values of nested mappings, such as ("solver.steps", 25), in order."""
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flatten_mapping(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def describe_leaves(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Return the type and shape of every array by its name, such as `float32[64, 128]`."""
    return {name: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for name, leaf in leaves.items()}


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Return a phrase for each name whose description differs or which only one side has.

    Args:
      expected, found: descriptions by name, such as `describe_leaves` gives.
    """
    return [
        f"{name}: found {found.get(name, 'none')}, expected {expected.get(name, 'none')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]


def summary(phrases: Sequence[str], noun: str, *, shown: int = 3) -> str:
    """Return the number of differences and the first ones in one line, as `2 arrays differ: a; b`."""
    more = f"; and {len(phrases) - shown} more" if len(phrases) > shown else ""
    return f"{len(phrases)} {noun} differ: {'; '.join(phrases[:shown])}{more}"
