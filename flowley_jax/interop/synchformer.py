"""Published Synchformer networks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.modules import count_numbered, in_our_layout, load_module
from flowley_jax.networks.synchformer import Synchformer
from flowley_jax.networks.synchformer_config import SynchformerConfig


def infer_config(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> SynchformerConfig:
    """Return the sizes of the network, from the shapes of its weights; the heads are as many as published.

    Raises:
      FlowleyError: weights are missing, or the width is not a multiple of the heads.
    """
    del settings
    try:
        mlp_width, width = arrays["vfeat_extractor.blocks.0.mlp.fc1.weight"].shape
        classes = len(arrays["transformer.off_head.weight"])
    except KeyError as error:
        raise FlowleyError(f"Synchformer lacks {error.args[0]}") from error
    return SynchformerConfig(
        width=width,
        mlp_width=mlp_width,
        layers=count_numbered(arrays, "vfeat_extractor.blocks.{}.norm1.weight"),
        head_layers=count_numbered(arrays, "transformer.blocks.{}.ln1.weight"),
        classes=classes,
    )


def synchformer_from_torch(arrays: Mapping[str, np.ndarray], config: SynchformerConfig) -> Synchformer:
    """Return the network with published weights.

    Raises:
      FlowleyError: weights are missing or have the wrong shape; the message names the first ones.
    """
    module = load_module(
        lambda: Synchformer(config, rngs=nnx.Rngs(0)), arrays, convert=in_our_layout, title="Synchformer"
    )
    assert isinstance(module, Synchformer)
    return module
