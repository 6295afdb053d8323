"""Published PaSST taggers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.modules import count_numbered, in_our_layout, load_module
from flowley_jax.networks.passt import Passt, PasstConfig

_HEAD_WIDTH = 64


def infer_config(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> PasstConfig:
    """Return the sizes of the tagger, from the shapes of its weights; its heads have 64 channels.

    Raises:
      FlowleyError: weights are missing, or the width is not a multiple of 64.
    """
    del settings
    try:
        width = arrays["norm.weight"].shape[0]
        mlp_width = len(arrays["blocks.0.mlp.fc1.weight"])
        classes = len(arrays["head.1.weight"])
    except KeyError as error:
        raise FlowleyError(f"the PaSST tagger lacks {error.args[0]}") from error
    if width % _HEAD_WIDTH:
        raise FlowleyError(f"PaSST of width {width} is not supported; it must be a multiple of {_HEAD_WIDTH}")
    return PasstConfig(
        width=width,
        layers=count_numbered(arrays, "blocks.{}.attn.qkv.weight"),
        heads=width // _HEAD_WIDTH,
        mlp_width=mlp_width,
        classes=classes,
    )


def passt_from_torch(arrays: Mapping[str, np.ndarray], config: PasstConfig) -> Passt:
    """Return the tagger with published weights.

    Raises:
      FlowleyError: weights are missing or have the wrong shape; the message names the first ones.
    """
    module = load_module(
        lambda: Passt(config, rngs=nnx.Rngs(0)), arrays, convert=_converted, title="the PaSST tagger"
    )
    assert isinstance(module, Passt)
    return module


def _converted(name: str, array: np.ndarray) -> np.ndarray:
    if name in ("freq_new_pos_embed", "time_new_pos_embed") and array.ndim == 4:
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    return in_our_layout(name, array)
