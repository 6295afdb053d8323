"""Published LAION-CLAP models."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.modules import count_numbered, in_our_layout, load_module
from flowley_jax.networks.clap import Clap, ClapConfig
from flowley_jax.networks.clap_audio import LAYERS, MEL_SHAPE, HtsatConfig
from flowley_jax.networks.clap_text import RobertaConfig

_PREFIX = "module."
_HEAD_WIDTH = 64
_FUSION = "audio_branch.patch_embed.mel_conv2d.weight"


def infer_config(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> ClapConfig:
    """Return the sizes of the model, from the shapes of its weights; heads of the text have 64 channels.

    Raises:
      FlowleyError: weights are missing, or the variant is not supported.
    """
    del settings
    named = _without_prefix(arrays)
    mel = named.get("audio_branch.logmel_extractor.melW")
    if _FUSION in named:
        raise FlowleyError("CLAP with fusion of long sounds is not supported; use a model without it")
    if mel is not None and mel.shape != MEL_SHAPE:
        raise FlowleyError(
            f"CLAP with a mel front end of {mel.shape} is not supported; it must be {MEL_SHAPE}"
        )
    try:
        return ClapConfig(
            audio=_audio_sizes(named), text=_text_sizes(named), dim=len(named["audio_projection.2.weight"])
        )
    except KeyError as error:
        raise FlowleyError(f"the CLAP model lacks {error.args[0]}") from error


def clap_from_torch(arrays: Mapping[str, np.ndarray], config: ClapConfig) -> Clap:
    """Return the model with published weights; the front end's constants are computed.

    Raises:
      FlowleyError: weights are missing or have the wrong shape; the message names the first ones.
    """
    module = load_module(
        lambda: Clap(config, rngs=nnx.Rngs(0)),
        _without_prefix(arrays),
        convert=_converted,
        title="the CLAP model",
    )
    assert isinstance(module, Clap)
    return module


def _audio_sizes(named: Mapping[str, np.ndarray]) -> HtsatConfig:
    def depth(layer: int) -> int:
        return count_numbered(named, f"audio_branch.layers.{layer}.blocks.{{}}.norm1.weight")

    def heads(layer: int) -> int:
        return named[f"audio_branch.layers.{layer}.blocks.0.attn.relative_position_bias_table"].shape[1]

    return HtsatConfig(
        width=len(named["audio_branch.patch_embed.proj.weight"]),
        depths=tuple(map(depth, range(LAYERS))),
        heads=tuple(map(heads, range(LAYERS))),
    )


def _text_sizes(named: Mapping[str, np.ndarray]) -> RobertaConfig:
    vocab_size, width = named["text_branch.embeddings.word_embeddings.weight"].shape
    if width % _HEAD_WIDTH:
        raise FlowleyError(
            f"CLAP with text of width {width} is not supported; it must be a multiple of {_HEAD_WIDTH}"
        )
    return RobertaConfig(
        vocab_size=vocab_size,
        positions=len(named["text_branch.embeddings.position_embeddings.weight"]),
        width=width,
        layers=count_numbered(named, "text_branch.encoder.layer.{}.intermediate.dense.weight"),
        heads=width // _HEAD_WIDTH,
        mlp_width=len(named["text_branch.encoder.layer.0.intermediate.dense.weight"]),
    )


def _without_prefix(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(_PREFIX): array for name, array in arrays.items()}


def _converted(name: str, array: np.ndarray) -> np.ndarray:
    is_table = name.endswith(("embeddings.weight", "relative_position_bias_table"))
    return array if is_table else in_our_layout(name, array)
