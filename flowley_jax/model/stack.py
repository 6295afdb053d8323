"""Blocks one after another: how they stand in the program, and what the backward pass keeps of them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flowley_jax.devices import platform_in_use
from flowley_jax.model.config import ModelConfig

# Maps the weights of a part of the network, just before it uses them, to those that it uses.
Fetch = Callable[[Any], Any]


def as_stored(weights: Any) -> Any:
    """The weights themselves."""
    return weights


def run_blocks(
    blocks: Sequence[nnx.Module],
    apply: Callable[[Any, Any, Any], Any],
    streams: Any,
    depths: Sequence[Any],
    *,
    config: ModelConfig,
    fetch: Fetch = as_stored,
) -> Any:
    """streams ← apply(block, streams, depth) for every depth.

    Args:
      blocks: one for each depth, or a single one that all depths share.
      depths: what the depths differ in: equal nests of numbers, passed to `apply` one after the other.
      config: `layers` and `remat` decide the layout; neither changes the result.
      fetch: applied to a block's weights where the block is, so that gathered weights live no longer.
    """
    graphdef, _ = nnx.split(blocks[0])
    weights = [nnx.split(block)[1] for block in blocks]
    if len(weights) == 1:
        # Gathered once and not at every depth.
        weights, fetch = [fetch(weights[0])], as_stored

    def step(weights, streams, depth):
        return apply(nnx.merge(graphdef, fetch(weights)), streams, depth)

    if config.remat == "block":
        step = jax.checkpoint(step)
    if not _scanned(config):
        for index, depth in enumerate(depths):
            streams = step(weights[index % len(weights)], streams, depth)
        return streams
    depths = jax.tree.map(lambda *values: jnp.asarray(values), *depths)
    if len(weights) == 1:
        return jax.lax.scan(lambda carry, depth: (step(weights[0], carry, depth), None), streams, depths)[0]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)
    return jax.lax.scan(lambda carry, at: (step(at[0], carry, at[1]), None), streams, (stacked, depths))[0]


def _scanned(config: ModelConfig) -> bool:
    if config.layers == "auto":
        # XLA:CPU differentiates convolutions inside a loop 26 times slower than outside.
        return platform_in_use() != "cpu"
    return config.layers == "scanned"
