"""The models that published files hold: how each is told by its names, and its sizes by shapes and
settings."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from flowley_jax.audio.bigvgan import BigVgan, BigVganConfig
from flowley_jax.audio.vae import AudioVae, VaeConfig
from flowley_jax.encoders.clip import ClipConfig, ClipVision
from flowley_jax.encoders.t5 import T5Config, T5Encoder
from flowley_jax.errors import FlowleyError
from flowley_jax.interop import audio_vae, bigvgan, clip, flowley, t5
from flowley_jax.model import Flowley, ModelConfig

Arrays = Mapping[str, np.ndarray]
Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A model that a file can hold.

    Attributes:
      name: as in a bundle's manifest, and its folder.
      title: for messages.
      marks: names that only this model has, any one of which tells it.
      config_type: dataclass of its sizes.
      infer: arrays and published settings (empty if none were beside the file) to its sizes.
      module: the model's class, made from its sizes.
      build: arrays and sizes to the model.
    """

    name: str
    title: str
    marks: tuple[str, ...]
    config_type: type
    infer: Callable[[Arrays, Settings], Any]
    module: Any
    build: Callable[[Arrays, Any], nnx.Module]


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            name="flowley",
            title="Flowley's network",
            marks=("audio_projector.0.weight", "model.audio_projector.0.weight"),
            config_type=ModelConfig,
            infer=flowley.infer_config,
            module=Flowley,
            build=flowley.flowley_from_torch,
        ),
        Kind(
            name="audio_vae",
            title="the audio VAE",
            marks=("decoder.mid.attn_1.qkv.weight",),
            config_type=VaeConfig,
            infer=audio_vae.infer_config,
            module=AudioVae,
            build=audio_vae.vae_from_torch,
        ),
        Kind(
            name="bigvgan",
            title="the BigVGAN vocoder",
            marks=("activation_post.act.alpha",),
            config_type=BigVganConfig,
            infer=bigvgan.infer_config,
            module=BigVgan,
            build=bigvgan.bigvgan_from_torch,
        ),
        Kind(
            name="clip",
            title="a CLIP image encoder",
            marks=(
                "visual.transformer.resblocks.0.ln_1.weight",
                "vision_model.encoder.layers.0.layer_norm1.weight",
            ),
            config_type=ClipConfig,
            infer=clip.infer_config,
            module=ClipVision,
            build=clip.clip_from_torch,
        ),
        Kind(
            name="t5",
            title="a T5 encoder",
            marks=("encoder.block.0.layer.0.SelfAttention.q.weight",),
            config_type=T5Config,
            infer=t5.infer_config,
            module=T5Encoder,
            build=t5.t5_from_torch,
        ),
    )
}

# Files that lie beside the wanted ones, by the start of some name in them.
_NEIGHBOURS = {
    "discriminators.": "discriminators of a vocoder",
    "mpd.": "discriminators of a vocoder",
    "audio_encoder.": "an encoder of sound",
    "visual.trunk.": "a CLIP model on another image network (timm), which is not supported",
    "joint_blocks.": "MMAudio's network",
    "transformer.h.": "a language model",
    "decoder.block.": "a T5 decoder without its encoder",
}


def identify(names: Iterable[str]) -> Kind | None:
    """The kind of model that has weights of these names, if any is known."""
    names = set(names)
    return next((kind for kind in KINDS.values() if any(mark in names for mark in kind.marks)), None)


def describe(names: Iterable[str]) -> str:
    """What a file with weights of these names is, in words."""
    names = sorted(names)
    kind = identify(names)
    if kind is not None:
        return kind.title
    for start, title in _NEIGHBOURS.items():
        if any(name.startswith(start) for name in names):
            return title
    return f"something else ({len(names)} weights, among them {', '.join(names[:3])})"


def check_kind(names: Iterable[str], expected: Kind, where: str) -> None:
    """Raises a FlowleyError that says what the file is where it is not of the expected kind."""
    names = list(names)
    if identify(names) is not expected:
        raise FlowleyError(f"{where}: expected {expected.title}, found {describe(names)}")
