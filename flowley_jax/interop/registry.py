"""The model formats that published files can have: how each is recognised, and how its model is built."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx

from flowley_jax.errors import FlowleyError
from flowley_jax.interop import (
    audio_vae,
    bigvgan,
    clap,
    clip,
    flowley,
    imagebind,
    panns,
    passt,
    synchformer,
    t5,
    vggish,
)
from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.networks.audio_vae import AudioVae, VaeConfig
from flowley_jax.networks.bigvgan import BigVgan, BigVganConfig
from flowley_jax.networks.clap import Clap, ClapConfig
from flowley_jax.networks.clip import ClipConfig, ClipVision
from flowley_jax.networks.imagebind import ImageBind, ImageBindConfig
from flowley_jax.networks.panns import Panns, PannsConfig
from flowley_jax.networks.passt import Passt, PasstConfig
from flowley_jax.networks.synchformer import Synchformer
from flowley_jax.networks.synchformer_config import SynchformerConfig
from flowley_jax.networks.t5 import T5Config, T5Encoder
from flowley_jax.networks.vggish import Vggish, VggishConfig

Arrays = Mapping[str, np.ndarray]
Settings = Mapping[str, Any]
_VALUE_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFormat:
    """A kind of published model.

    Attributes:
      name: name in a bundle's manifest, and of the bundle's folder.
      title: name of the model in messages.
      markers: weight names that only this format has; any one of them identifies it.
      config_type: dataclass of the model's sizes.
      infer: function from arrays and published settings (empty if there are none) to the sizes.
      module: class of the model; it is constructed from the sizes.
      build: function from arrays and sizes to the model.
      needs: function from a weight's name to whether the model needs it; others are neither read nor kept.
    """

    name: str
    title: str
    markers: tuple[str, ...]
    config_type: type
    infer: Callable[[Arrays, Settings], Any]
    module: Any
    build: Callable[[Arrays, Any], nnx.Module]
    needs: Callable[[str], bool] = lambda name: True

    def config_of(self, arrays: Arrays, settings: Settings) -> Any:
        """Return the sizes of the model.

        Raises:
          FlowleyError: weights or settings are missing, unusable or not supported.
        """
        with self._foreign_values("sizes"):
            return self.infer(arrays, settings)

    def model_of(self, arrays: Arrays, config: Any) -> nnx.Module:
        """Return the model.

        Raises:
          FlowleyError: weights are missing, have the wrong shape or type, or are not finite.
        """
        with self._foreign_values("weights"):
            return self.build(arrays, config)

    @contextlib.contextmanager
    def _foreign_values(self, what: str) -> Iterator[None]:
        """Name the model in errors of arithmetic and types, in which unusable sizes and settings end."""
        try:
            yield
        except FlowleyError:
            raise
        except _VALUE_ERRORS as error:
            reason = " ".join(str(error).split())[:200]
            raise FlowleyError(
                f"the {what} of {self.title} cannot be used ({type(error).__name__}: {reason})"
            ) from error


FORMATS = {
    entry.name: entry
    for entry in (
        ModelFormat(
            name="flowley",
            title="Flowley's network",
            markers=("audio_projector.0.weight", "model.audio_projector.0.weight"),
            config_type=ModelConfig,
            infer=flowley.infer_config,
            module=Flowley,
            build=flowley.flowley_from_torch,
        ),
        ModelFormat(
            name="audio_vae",
            title="the audio VAE",
            markers=("decoder.mid.attn_1.qkv.weight",),
            config_type=VaeConfig,
            infer=audio_vae.infer_config,
            module=AudioVae,
            build=audio_vae.vae_from_torch,
        ),
        ModelFormat(
            name="bigvgan",
            title="the BigVGAN vocoder",
            markers=("activation_post.act.alpha",),
            config_type=BigVganConfig,
            infer=bigvgan.infer_config,
            module=BigVgan,
            build=bigvgan.bigvgan_from_torch,
        ),
        ModelFormat(
            name="clip",
            title="a CLIP image encoder",
            markers=(
                "visual.transformer.resblocks.0.ln_1.weight",
                "vision_model.encoder.layers.0.layer_norm1.weight",
            ),
            config_type=ClipConfig,
            infer=clip.infer_config,
            module=ClipVision,
            build=clip.clip_from_torch,
        ),
        ModelFormat(
            name="t5",
            title="a T5 encoder",
            markers=("encoder.block.0.layer.0.SelfAttention.q.weight",),
            config_type=T5Config,
            infer=t5.infer_config,
            module=T5Encoder,
            build=t5.t5_from_torch,
        ),
        ModelFormat(
            name="panns",
            title="a PANNs tagger",
            markers=("conv_block1.conv1.weight",),
            config_type=PannsConfig,
            infer=panns.infer_config,
            module=Panns,
            build=panns.panns_from_torch,
        ),
        ModelFormat(
            name="vggish",
            title="VGGish",
            markers=("embeddings.4.weight",),
            config_type=VggishConfig,
            infer=vggish.infer_config,
            module=Vggish,
            build=vggish.vggish_from_torch,
        ),
        ModelFormat(
            name="passt",
            title="a PaSST tagger",
            markers=("time_new_pos_embed",),
            config_type=PasstConfig,
            infer=passt.infer_config,
            module=Passt,
            build=passt.passt_from_torch,
        ),
        ModelFormat(
            name="clap",
            title="LAION-CLAP",
            markers=("audio_branch.patch_embed.proj.weight", "module.audio_branch.patch_embed.proj.weight"),
            config_type=ClapConfig,
            infer=clap.infer_config,
            module=Clap,
            build=clap.clap_from_torch,
        ),
        ModelFormat(
            name="synchformer",
            title="Synchformer",
            markers=("transformer.OFF_tok",),
            config_type=SynchformerConfig,
            infer=synchformer.infer_config,
            module=Synchformer,
            build=synchformer.synchformer_from_torch,
        ),
        ModelFormat(
            name="imagebind",
            title="ImageBind",
            markers=("modality_trunks.vision.blocks.0.attn.in_proj_weight",),
            config_type=ImageBindConfig,
            infer=imagebind.infer_config,
            module=ImageBind,
            build=imagebind.imagebind_from_torch,
            needs=imagebind.is_needed,
        ),
    )
}

# Other files that are often downloaded by mistake, by a prefix of a weight's name.
_OTHER_MODELS = {
    "discriminators.": "the discriminators of a vocoder",
    "mpd.": "the discriminators of a vocoder",
    "audio_encoder.": "an audio encoder",
    "audio_model.audio_encoder.": "a CLAP model in the layout of transformers, which is not supported",
    "visual.trunk.": "a CLIP model with a different image network (timm), which is not supported",
    "joint_blocks.": "MMAudio's network",
    "transformer.h.": "a language model",
    "decoder.block.": "a T5 decoder without its encoder",
}


def identify(names: Iterable[str]) -> ModelFormat | None:
    """Return the format of a file with weights of these names, or None if it is unknown."""
    names = set(names)
    return next((entry for entry in FORMATS.values() if names.intersection(entry.markers)), None)


def needed_weights(names: Collection[str]) -> Collection[str]:
    """Return the names of the weights that the model of a file needs; all, if it is unknown."""
    model_format = identify(names)
    return names if model_format is None else [name for name in names if model_format.needs(name)]


def describe(names: Iterable[str]) -> str:
    """Return a phrase for the model that weights of these names belong to."""
    names = sorted(names)
    model_format = identify(names)
    if model_format is not None:
        return model_format.title
    for prefix, title in _OTHER_MODELS.items():
        if any(name.startswith(prefix) for name in names):
            return title
    shown = ", ".join(" ".join(name.split())[:80] for name in names[:3])
    return f"an unknown model ({len(names)} weights, among them {shown})"


def check_format(names: Iterable[str], expected: ModelFormat, where: str) -> None:
    """Raise a FlowleyError unless weights of these names have the expected format.

    Args:
      names: names of the weights.
      expected: format that they must have.
      where: name of the file, for the message.
    """
    names = list(names)
    if identify(names) is not expected:
        raise FlowleyError(f"{where}: expected {expected.title}, found {describe(names)}")
