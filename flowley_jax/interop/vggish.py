"""Published VGGish networks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.modules import in_our_layout, load_module
from flowley_jax.networks.vggish import CONVOLUTIONS, LINEARS, Vggish, VggishConfig


def infer_config(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> VggishConfig:
    """Return the sizes of the network, from the shapes of its weights.

    Raises:
      FlowleyError: weights are missing.
    """
    del settings
    try:
        widths = [len(arrays[f"features.{index}.weight"]) for index in CONVOLUTIONS]
        linear_widths = [len(arrays[f"embeddings.{index}.weight"]) for index in LINEARS]
    except KeyError as error:
        raise FlowleyError(f"VGGish lacks {error.args[0]}") from error
    return VggishConfig(widths=tuple(widths), linear_widths=tuple(linear_widths))


def vggish_from_torch(arrays: Mapping[str, np.ndarray], config: VggishConfig) -> Vggish:
    """Return the network with published weights.

    Raises:
      FlowleyError: weights are missing or have the wrong shape; the message names the first ones.
    """
    module = load_module(
        lambda: Vggish(config, rngs=nnx.Rngs(0)), arrays, convert=in_our_layout, title="VGGish"
    )
    assert isinstance(module, Vggish)
    return module
