"""Published T5 and FLAN-T5 encoders. The decoder, if the file has one, is ignored."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from flowley_jax.common.typed import typed_from
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.modules import count_numbered, load_module
from flowley_jax.networks.t5 import FeedForward, T5Config, T5Encoder

_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")
_FEED_FORWARD: Mapping[str, FeedForward] = {"gated-gelu": "gated-gelu", "relu": "relu"}
_LAYER = "encoder.block.{}.layer.0.SelfAttention.q.weight"
_NEEDED = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads")


def infer_config(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> T5Config:
    """Return the sizes of the encoder, from `config.json` and from the embedding table.

    Raises:
      FlowleyError: settings are missing, or the variant is not supported.
    """
    missing = [name for name in _NEEDED if name not in settings]
    if missing:
        raise FlowleyError(
            f"this T5 model needs its config.json (for {missing[0]}); put it next to the weights"
        )
    feed_forward = settings.get("feed_forward_proj", "relu")
    if not isinstance(feed_forward, str) or feed_forward not in _FEED_FORWARD:
        raise FlowleyError(f"T5 with feed_forward_proj={feed_forward!r} is not supported")
    optional = ("relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon")
    stated = {name: settings[name] for name in (*_NEEDED, *optional) if name in settings}
    config = typed_from(
        T5Config,
        {"vocab_size": len(_embeddings(arrays)), "feed_forward": _FEED_FORWARD[feed_forward], **stated},
        "config.json",
    )
    wrong = [name for name, value in stated.items() if not value > 0]
    if wrong:
        raise FlowleyError(f"config.json: {wrong[0]}={stated[wrong[0]]!r} must be positive")
    layers = count_numbered(arrays, _LAYER)
    if config.num_layers != layers:
        raise FlowleyError(f"config.json: num_layers={config.num_layers}, but the weights have {layers}")
    return config


def t5_from_torch(arrays: Mapping[str, np.ndarray], config: T5Config) -> T5Encoder:
    """Return the encoder with published weights.

    Raises:
      FlowleyError: weights are missing or have the wrong shape; the message names the first ones.
    """

    def convert(name: str, array: np.ndarray) -> np.ndarray:
        is_table = name == "shared.weight" or name.endswith("relative_attention_bias.weight")
        return array if array.ndim != 2 or is_table else np.ascontiguousarray(array.T)

    module = load_module(
        lambda: T5Encoder(config, rngs=nnx.Rngs(0)),
        {**arrays, "shared.weight": _embeddings(arrays)},
        convert=convert,
        title="the T5 encoder",
    )
    assert isinstance(module, T5Encoder)
    return module


def _embeddings(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    for name in _EMBEDDINGS:
        if name in arrays:
            return arrays[name]
    raise FlowleyError(f"the T5 encoder has no embedding table: neither {' nor '.join(_EMBEDDINGS)}")
