"""Run a stack of blocks: unrolled or scanned, with or without recomputation in the backward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flowley_jax.common.devices import platform_in_use
from flowley_jax.model.config import ModelConfig

# Maps the stored weights of one block to the weights it computes with, such as gathered or cast ones.
GatherWeights = Callable[[Any], Any]


def identity(weights: Any) -> Any:
    """Return the weights unchanged."""
    return weights


def run_blocks(
    blocks: Sequence[nnx.Module],
    apply: Callable[[Any, Any, Any], Any],
    streams: Any,
    depths: Sequence[Any],
    *,
    config: ModelConfig,
    gather_weights: GatherWeights = identity,
) -> Any:
    """Compute streams ← apply(block, streams, depth) for every depth.

    Args:
      blocks: one block for each depth, or a single block that all depths share.
      apply: runs one block.
      streams: pytree of arrays that the blocks pass on.
      depths: numbers that tell the depths apart, as pytrees of equal structure.
      config: `layers` and `remat` choose the program; neither changes the result.
      gather_weights: applied to a block's weights inside its step, so that gathered weights live no longer.

    Returns:
      The streams after the last block.
    """
    graphdef, _ = nnx.split(blocks[0])
    weights = [nnx.split(block)[1] for block in blocks]
    if len(weights) == 1:
        # Shared weights are gathered once, not at every depth.
        weights, gather_weights = [gather_weights(weights[0])], identity

    def step(weights: Any, streams: Any, depth: Any) -> Any:
        return apply(nnx.merge(graphdef, gather_weights(weights)), streams, depth)

    if config.remat == "block":
        step = jax.checkpoint(step)
    if not _scanned(config):
        for index, depth in enumerate(depths):
            streams = step(weights[index % len(weights)], streams, depth)
        return streams
    depths = jax.tree.map(lambda *values: jnp.asarray(values), *depths)
    if len(weights) == 1:
        return jax.lax.scan(lambda carry, depth: (step(weights[0], carry, depth), None), streams, depths)[0]
    # Blocks are stored one by one, as in the published state dict, so that a checkpoint does not depend on
    # `layers`. A scan reads stacked weights, so each step copies the blocks' stored weights once.
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)
    return jax.lax.scan(lambda carry, xs: (step(xs[0], carry, xs[1]), None), streams, (stacked, depths))[0]


def _scanned(config: ModelConfig) -> bool:
    if config.layers == "auto":
        # XLA:CPU differentiates convolutions inside a loop 26 times slower than outside.
        return platform_in_use() != "cpu"
    return config.layers == "scanned"
