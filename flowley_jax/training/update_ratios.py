"""How far a step moves each part of the network, relative to the size of its weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from flowley_jax.training.sharding import path_name


def update_ratios(updates: Any, parameters: Any, *, when: jax.Array) -> dict[str, jax.Array]:
    """‖update‖ / ‖weights‖ of every block and of what lies outside of blocks, as `update_ratio/<part>`.

    Args:
      when: whether to compute them, which reads all weights once more; all are 0 otherwise.
    """
    parts: dict[str, list[tuple[jax.Array, jax.Array]]] = {}
    for (path, update), weight in zip(
        jax.tree.leaves_with_path(updates), jax.tree.leaves(parameters), strict=True
    ):
        parts.setdefault(_part(path_name(path)), []).append((update, weight))

    def compute():
        return {
            name: _norm(update for update, _ in pairs) / _norm(w for _, w in pairs)
            for name, pairs in parts.items()
        }

    ratios = jax.lax.cond(when, compute, lambda: {name: jnp.zeros(()) for name in parts})
    return {f"update_ratio/{name}": value for name, value in ratios.items()}


def _norm(leaves) -> jax.Array:
    # Of a part that is all zeros, such as the last layer in the beginning, any update is large.
    return jnp.maximum(optax.tree.norm(list(leaves)), 1e-12)


def _part(name: str) -> str:
    first, second, *_ = name.split("/")
    return f"{first}/{second}" if second.isdigit() else first
