"""Published ImageBind networks, of which those of picture and sound are used."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.modules import count_numbered, in_our_layout, load_module
from flowley_jax.networks.imagebind import ImageBind, ImageBindConfig, TrunkConfig

# Heads cannot be told from the weights.
_HEADS = {"vision": 16, "audio": 12}


def is_needed(name: str) -> bool:
    """Return whether a weight belongs to the networks of picture and sound; the file has four more."""
    return name.startswith("modality_") and name.split(".")[1:2] in (["vision"], ["audio"])


def infer_config(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> ImageBindConfig:
    """Return the sizes of the networks, from the shapes of their weights; the heads are as many as published.

    Raises:
      FlowleyError: weights are missing, or a width is not a multiple of the heads.
    """
    del settings
    try:
        trunks = {branch: _trunk(arrays, branch) for branch in _HEADS}
        dim = len(arrays["modality_heads.vision.2.weight"])
    except KeyError as error:
        raise FlowleyError(f"ImageBind lacks {error.args[0]}") from error
    return ImageBindConfig(vision=trunks["vision"], audio=trunks["audio"], dim=dim)


def _trunk(arrays: Mapping[str, np.ndarray], branch: str) -> TrunkConfig:
    blocks = f"modality_trunks.{branch}.blocks"
    mlp_width, width = arrays[f"{blocks}.0.mlp.fc1.weight"].shape
    layers = count_numbered(arrays, f"{blocks}.{{}}.norm_1.weight")
    return TrunkConfig(width=width, layers=layers, heads=_HEADS[branch], mlp_width=mlp_width)


def imagebind_from_torch(arrays: Mapping[str, np.ndarray], config: ImageBindConfig) -> ImageBind:
    """Return the networks with published weights.

    Raises:
      FlowleyError: weights are missing or have the wrong shape; the message names the first ones.
    """
    module = load_module(
        lambda: ImageBind(config, rngs=nnx.Rngs(0)), arrays, convert=in_our_layout, title="ImageBind"
    )
    assert isinstance(module, ImageBind)
    return module
