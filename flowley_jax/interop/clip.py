"""Published CLIP image encoders, with the weight names of open_clip or of Hugging Face."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.modules import count_numbered, load_module
from flowley_jax.networks.clip import Activation, ClipConfig, ClipVision

_PREFIX = "visual."
_HEAD_WIDTH = 64
_HUGGING_FACE = (
    (r"^vision_model\.embeddings\.class_embedding$", "class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.weight$", "conv1.weight"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "ln_pre."),
    (r"^vision_model\.post_layernorm\.", "ln_post."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm1\.", r"transformer.resblocks.\1.ln_1."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm2\.", r"transformer.resblocks.\1.ln_2."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
    (
        r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.",
        r"transformer.resblocks.\1.attn.out_proj.",
    ),
)
_ACTIVATIONS: Mapping[str, Activation] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}


def infer_config(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> ClipConfig:
    """Return the sizes of the encoder, from the shapes of its weights and from the published settings.

    Raises:
      FlowleyError: the settings, without which the activation is unknown, are missing; or the variant is not
        supported.
    """
    named = visual_weights(arrays)
    try:
        width, _, patch, _ = named["conv1.weight"].shape
        tokens = named["positional_embedding"].shape[0]
        dim = named["proj"].shape[1]
        mlp_width = named["transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    except KeyError as error:
        raise FlowleyError(f"the CLIP image encoder lacks {error.args[0]}") from error
    heads, activation = _heads_and_activation(settings, width)
    if type(heads) is not int or not 0 < heads <= width:
        raise FlowleyError(f"CLIP with {heads!r} attention heads and width {width} is not possible")
    return ClipConfig(
        image_size=round((tokens - 1) ** 0.5) * patch,
        patch_size=patch,
        width=width,
        layers=count_numbered(named, "transformer.resblocks.{}.ln_1.weight"),
        heads=heads,
        mlp_width=mlp_width,
        dim=dim,
        activation=activation,
    )


def clip_from_torch(arrays: Mapping[str, np.ndarray], config: ClipConfig) -> ClipVision:
    """Return the image encoder with published weights, ignoring the text encoder's.

    Raises:
      FlowleyError: weights are missing or have the wrong shape; the message names the first ones.
    """

    def convert(name: str, array: np.ndarray) -> np.ndarray:
        if name == "conv1.weight":
            return np.ascontiguousarray(array.transpose(2, 3, 1, 0))
        is_linear = array.ndim == 2 and name.endswith("weight")
        return np.ascontiguousarray(array.T) if is_linear and name != "positional_embedding" else array

    module = load_module(
        lambda: ClipVision(config, rngs=nnx.Rngs(0)),
        visual_weights(arrays),
        convert=convert,
        title="the CLIP image encoder",
    )
    assert isinstance(module, ClipVision)
    return module


def visual_weights(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the image encoder's weights under open_clip's names, without the prefix `visual.`."""
    if any(name.startswith("vision_model.") for name in arrays):
        return _from_hugging_face(arrays)
    return {name.removeprefix(_PREFIX): x for name, x in arrays.items() if name.startswith(_PREFIX)}


def _from_hugging_face(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    named = {}
    for name, array in arrays.items():
        for pattern, replacement in _HUGGING_FACE:
            if re.search(pattern, name):
                named[re.sub(pattern, replacement, name)] = array
    layer = 0
    while (stem := f"vision_model.encoder.layers.{layer}.self_attn.") + "q_proj.weight" in arrays:
        for suffix in ("weight", "bias"):
            names = [f"{stem}{projection}_proj.{suffix}" for projection in "qkv"]
            projections = [arrays[name] for name in names if name in arrays]
            if projections:
                named[f"transformer.resblocks.{layer}.attn.in_proj_{suffix}"] = np.concatenate(projections)
        layer += 1
    if "visual_projection.weight" in arrays:
        named["proj"] = arrays["visual_projection.weight"].T
    return named


def _heads_and_activation(settings: Mapping[str, Any], width: int) -> tuple[int, Activation]:
    if "vision_config" in settings:
        vision = settings["vision_config"]
        activation = vision.get("hidden_act", "quick_gelu")
        heads = vision.get("num_attention_heads", width // _HEAD_WIDTH)
    elif "vision_cfg" in settings.get("model_cfg", settings):
        model = settings.get("model_cfg", settings)
        activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
        heads = width // model["vision_cfg"].get("head_width", _HEAD_WIDTH)
    else:
        raise FlowleyError(
            "this CLIP model needs its settings, because only they say whether the activation is QuickGELU; "
            "put open_clip_config.json (open_clip) or config.json (Hugging Face) next to the weights"
        )
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise FlowleyError(f"CLIP with activation {activation!r} is not supported")
    return heads, _ACTIVATIONS[activation]
