"""Low-rank adaptation (LoRA; Hu et al., arXiv 2106.09685): small trained matrices added to frozen weights.

An adapted kernel is W + (alpha / rank)·A·B with A (…, in, rank) and B (rank, out); B starts at zero. For a
convolution, the leading axes of A are the kernel positions. Merging maps weights to weights, so the network
itself does not change, and any layer, mesh and block layout works.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flowley_jax.common.trees import path_name
from flowley_jax.config import LoraConfig
from flowley_jax.errors import FlowleyError

# Dotted layer name to its pair of matrices, {"a": A, "b": B}.
Adapters = Mapping[str, Mapping[str, Any]]
_KERNEL = "/kernel/value"


def new_adapters(weights: Any, config: LoraConfig, key: jax.Array) -> dict[str, dict[str, jax.Array]]:
    """Return new adapters for the layers that `config.layers` matches; they have no effect yet.

    Raises:
      FlowleyError: a pattern matches no layer; the message lists all layers, with N for the block number.
    """
    kernels = {
        layer: leaf
        for path, leaf in jax.tree.leaves_with_path(weights)
        if (layer := _layer(path_name(path))) is not None
    }
    chosen: dict[str, Any] = {}
    for pattern in config.layers:
        matching = {layer: leaf for layer, leaf in kernels.items() if re.search(pattern, layer)}
        if not matching:
            # One name stands for all blocks.
            names = sorted({re.sub(r"\.\d+\.", ".N.", layer) for layer in kernels})
            raise FlowleyError(f"lora.layers: {pattern!r} matches none of {', '.join(names)}")
        chosen |= matching
    return {
        layer: {
            "a": jax.random.normal(jax.random.fold_in(key, index), (*leaf.shape[:-1], config.rank))
            / math.sqrt(leaf.shape[-2]),
            "b": jnp.zeros((config.rank, leaf.shape[-1])),
        }
        for index, (layer, leaf) in enumerate(sorted(chosen.items()))
    }


def merged(weights: Any, adapters: Adapters, *, strength: float) -> Any:
    """Return weights with their adapters added.

    Args:
      strength: factor of A·B; alpha / rank as trained.

    Raises:
      FlowleyError: an adapter belongs to no layer of these weights, or has another shape.
    """
    unused = set(adapters)

    def adapted(path, leaf):
        layer = _layer(path_name(path))
        if layer not in unused:
            return leaf
        unused.remove(layer)
        pair = adapters[layer]
        if (*pair["a"].shape[:-1], pair["b"].shape[-1]) != leaf.shape:
            raise FlowleyError(f"the adapter of {layer} does not fit the kernel's shape {leaf.shape}")
        return leaf + strength * (pair["a"] @ pair["b"])

    result = jax.tree.map_with_path(adapted, weights)
    if unused:
        raise FlowleyError(f"adapters of unknown layers: {', '.join(sorted(unused))}")
    return result


def _layer(name: str) -> str | None:
    return name.removesuffix(_KERNEL).replace("/", ".") if name.endswith(_KERNEL) else None
