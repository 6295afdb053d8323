"""Published PANNs taggers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.modules import in_our_layout, load_module
from flowley_jax.networks.panns import BLOCKS, MEL_SHAPE, Panns, PannsConfig


def infer_config(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> PannsConfig:
    """Return the sizes of the tagger, from the shapes of its weights.

    Raises:
      FlowleyError: weights are missing, or the front end is another one than that at 16 kHz.
    """
    del settings
    mel = arrays.get("logmel_extractor.melW")
    if mel is not None and mel.shape != MEL_SHAPE:
        raise FlowleyError(
            f"PANNs with a mel front end of {mel.shape} is not supported; the tagger at 16 kHz, Cnn14_16k, "
            f"has {MEL_SHAPE}"
        )
    try:
        widths = [len(arrays[f"conv_block{index}.conv1.weight"]) for index in range(1, BLOCKS + 1)]
        classes = len(arrays["fc_audioset.weight"])
    except KeyError as error:
        raise FlowleyError(f"the PANNs tagger lacks {error.args[0]}") from error
    return PannsConfig(widths=tuple(widths), classes=classes)


def panns_from_torch(arrays: Mapping[str, np.ndarray], config: PannsConfig) -> Panns:
    """Return the tagger with published weights; the front end's constants are computed.

    Raises:
      FlowleyError: weights are missing or have the wrong shape; the message names the first ones.
    """
    module = load_module(
        lambda: Panns(config, rngs=nnx.Rngs(0)), arrays, convert=in_our_layout, title="the PANNs tagger"
    )
    assert isinstance(module, Panns)
    return module
