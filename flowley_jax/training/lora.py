"""Low-rank adaptation (Hu et al., arXiv 2106.09685): small trained matrices on weights that stay as they are.

An adapted kernel is W + (alpha / rank)·A·B with A (…, in, rank) and B (rank, out), B zero at first. A
convolution's A has its kernel positions in front. It is a map of weights to weights: the network knows
nothing of it, and so it fits any layer, mesh and loop over blocks.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flowley_jax.config import LoraConfig
from flowley_jax.errors import FlowleyError
from flowley_jax.training.sharding import path_name

# By the layer's name, dots between its parts: {"a": A, "b": B}.
Adapters = Mapping[str, Mapping[str, Any]]
_KERNEL = "/kernel/value"


def new_adapters(weights: Any, config: LoraConfig, key: jax.Array) -> dict[str, dict[str, jax.Array]]:
    """Adapters of the chosen layers, which change nothing yet.

    Raises:
      FlowleyError: a pattern fits no layer; those that there are are listed, N for any block.
    """
    kernels = {
        layer: leaf
        for path, leaf in jax.tree.leaves_with_path(weights)
        if (layer := _layer(path_name(path))) is not None
    }
    chosen: dict[str, Any] = {}
    for pattern in config.layers:
        fitting = {layer: leaf for layer, leaf in kernels.items() if re.search(pattern, layer)}
        if not fitting:
            # One name for all blocks.
            names = sorted({re.sub(r"\.\d+\.", ".N.", layer) for layer in kernels})
            raise FlowleyError("\n  ".join([f"lora.layers: {pattern!r} fits none of", *names]))
        chosen |= fitting
    return {
        layer: {
            "a": jax.random.normal(jax.random.fold_in(key, index), (*leaf.shape[:-1], config.rank))
            / math.sqrt(leaf.shape[-2]),
            "b": jnp.zeros((config.rank, leaf.shape[-1])),
        }
        for index, (layer, leaf) in enumerate(sorted(chosen.items()))
    }


def merged(weights: Any, adapters: Adapters, *, strength: float) -> Any:
    """Weights with their adapters added.

    Args:
      strength: alpha / rank, or any other factor of what the adapters learned.

    Raises:
      FlowleyError: an adapter belongs to no layer of these weights, or has another shape.
    """
    left = set(adapters)

    def adapted(path, leaf):
        layer = _layer(path_name(path))
        if layer not in left:
            return leaf
        left.remove(layer)
        pair = adapters[layer]
        if (*pair["a"].shape[:-1], pair["b"].shape[-1]) != leaf.shape:
            raise FlowleyError(f"the adapter of {layer} is made for another shape than {leaf.shape}")
        return leaf + strength * (pair["a"] @ pair["b"])

    result = jax.tree.map_with_path(adapted, weights)
    if left:
        raise FlowleyError(f"adapters of layers that are not there: {', '.join(sorted(left))}")
    return result


def _layer(name: str) -> str | None:
    return name.removesuffix(_KERNEL).replace("/", ".") if name.endswith(_KERNEL) else None
