"""ImageBind (Girdhar et al. 2023, arXiv 2305.05665): its networks of picture and sound.

Attributes are named as in the published file, so that the path of a weight is its name there. Linear weights
are (in, out), and kernels (frames, height, width, in, out).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.errors import FlowleyError
from flowley_jax.networks.imagebind_audio import BINS, FRAMES
from flowley_jax.networks.layers import LayerNorm, Linear, Mlp, PatchConvolution, unit
from flowley_jax.networks.packed_attention import PackedAttention
from flowley_jax.networks.video_patches import VideoPatches

IMAGE_SIZE = 224
_VIDEO_PATCH_FRAMES, _VIDEO_PATCH_SIZE = 2, 14
_AUDIO_PATCH_SIZE, _AUDIO_PATCH_STEP = 16, 10
_VIDEO_PATCHES = (IMAGE_SIZE // _VIDEO_PATCH_SIZE) ** 2
_AUDIO_PATCHES = (1 + (BINS - _AUDIO_PATCH_SIZE) // _AUDIO_PATCH_STEP) * (
    1 + (FRAMES - _AUDIO_PATCH_SIZE) // _AUDIO_PATCH_STEP
)
_EPSILON, _AUDIO_STEM_EPSILON = 1e-6, 1e-5
_FIRST_SCALE, _LARGEST_SCALE = 20.0, 100.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """Sizes of one of the two transformers.

    Attributes:
      width: channels of a token.
      layers, heads: blocks, and attention heads of a block.
      mlp_width: hidden channels of a block's feed-forward net.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int

    def __post_init__(self):
        if self.width % self.heads:
            raise FlowleyError(f"ImageBind: width {self.width} must be a multiple of {self.heads} heads")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageBindConfig:
    """Sizes of the networks.

    Attributes:
      vision, audio: sizes of the transformers.
      dim: width of the embedding that picture and sound share.
      dtype: compute type.
    """

    vision: TrunkConfig = TrunkConfig(width=1280, layers=32, heads=16, mlp_width=5120)
    audio: TrunkConfig = TrunkConfig(width=768, layers=12, heads=12, mlp_width=3072)
    dim: int = 1024
    dtype: str = "float32"


class ImageBind(nnx.Module):
    """Networks of picture and sound."""

    def __init__(self, config: ImageBindConfig, *, rngs: nnx.Rngs):
        self.config = config
        vision, audio = config.vision, config.audio
        # Each holds modules of several types.
        self.modality_preprocessors: Any = nnx.Dict(
            {"vision": VisionStem(vision, rngs=rngs), "audio": AudioStem(audio, rngs=rngs)}
        )
        self.modality_trunks: Any = nnx.Dict(
            {
                "vision": Trunk(vision, first_norm=True, rngs=rngs),
                "audio": Trunk(audio, extra_key=True, rngs=rngs),
            }
        )
        self.modality_heads: Any = nnx.Dict(
            {
                "vision": _head(vision.width, config.dim, rngs),
                "audio": _head(audio.width, config.dim, rngs),
            }
        )
        self.modality_postprocessors: Any = nnx.Dict({"audio": nnx.Dict({"1": LogitScale()})})

    def embed_audio(self, images: Float[Array, "B clips 128 204"]) -> Float[Array, "B dim"]:
        """Return the mean over the clips of a sound, each of the length that the file states, float32.

        Args:
          images: images of clips; see `imagebind_audio.clip_images`.
        """
        clips = self._embedding("audio", images.reshape(-1, *images.shape[2:]))
        scaled = self.modality_postprocessors["audio"]["1"](unit(clips))
        return scaled.reshape(*images.shape[:2], -1).mean(axis=1)

    def embed_video(self, clips: Float[Array, "B clips 2 224 224 3"]) -> Float[Array, "B dim"]:
        """Return the mean over the clips of a video, each of unit length, float32.

        Args:
          clips: normalised RGB; see `evaluation.frames.imagebind_clips`.
        """
        embeddings = unit(self._embedding("vision", clips.reshape(-1, *clips.shape[2:])))
        return embeddings.reshape(*clips.shape[:2], -1).mean(axis=1)

    def _embedding(self, branch: str, inputs: Array) -> Float[Array, "B dim"]:
        tokens = self.modality_preprocessors[branch](inputs.astype(self.config.dtype))
        head = self.modality_heads[branch]
        first = self.modality_trunks[branch](tokens)[:, 0]
        return head["2"](head["0"](first)).astype(jnp.float32)


class VisionStem(nnx.Module):
    """Tokens of clips: that of the class, then those of the patches."""

    def __init__(self, config: TrunkConfig, *, rngs: nnx.Rngs):
        patches = VideoPatches(
            _VIDEO_PATCH_FRAMES, _VIDEO_PATCH_SIZE, config.width, use_bias=False, rngs=rngs
        )
        self.cls_token = nnx.Param(jnp.zeros((1, 1, config.width), jnp.float32))
        self.rgbt_stem: Any = nnx.Dict({"proj": nnx.Dict({"1": patches})})
        self.pos_embedding_helper = _positions(_VIDEO_PATCHES, config.width)

    def __call__(self, clips: Float[Array, "B 2 224 224 3"]) -> Float[Array, "B N D"]:
        patches = self.rgbt_stem["proj"]["1"](clips)
        return _with_class(patches, self.cls_token, self.pos_embedding_helper)


class AudioStem(nnx.Module):
    """Tokens of images of sounds: that of the class, then those of the patches, low frequencies first."""

    def __init__(self, config: TrunkConfig, *, rngs: nnx.Rngs):
        patches = PatchConvolution(
            _AUDIO_PATCH_SIZE, _AUDIO_PATCH_STEP, 1, config.width, use_bias=False, rngs=rngs
        )
        norm = LayerNorm(config.width, epsilon=_AUDIO_STEM_EPSILON)
        self.cls_token = nnx.Param(jnp.zeros((1, 1, config.width), jnp.float32))
        self.rgbt_stem: Any = nnx.Dict({"proj": patches, "norm_layer": norm})
        self.pos_embedding_helper = _positions(_AUDIO_PATCHES, config.width)

    def __call__(self, images: Float[Array, "B 128 204"]) -> Float[Array, "B N D"]:
        grid = self.rgbt_stem["proj"](images[..., None])
        patches = self.rgbt_stem["norm_layer"](grid.reshape(len(grid), -1, grid.shape[-1]))
        return _with_class(patches, self.cls_token, self.pos_embedding_helper)


class Trunk(nnx.Module):
    """Sequence of pre-norm blocks.

    Args:
      config: the sizes.
      first_norm: whether the tokens are normalised before the first block.
      extra_key: whether every query also attends to one learned key and value.
    """

    def __init__(
        self, config: TrunkConfig, *, first_norm: bool = False, extra_key: bool = False, rngs: nnx.Rngs
    ):
        norms = {"0": LayerNorm(config.width, epsilon=_EPSILON)} if first_norm else {}
        self.pre_transformer_layer = nnx.Dict(norms)
        self.blocks = nnx.List([Block(config, extra_key=extra_key, rngs=rngs) for _ in range(config.layers)])

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        if "0" in self.pre_transformer_layer:
            x = self.pre_transformer_layer["0"](x)
        for block in self.blocks:
            x = block(x)
        return x


class Block(nnx.Module):
    """Attention and a two-layer net, each applied to normalised input and added to it."""

    def __init__(self, config: TrunkConfig, *, extra_key: bool, rngs: nnx.Rngs):
        self.norm_1 = LayerNorm(config.width, epsilon=_EPSILON)
        self.norm_2 = LayerNorm(config.width, epsilon=_EPSILON)
        self.attn = PackedAttention(config.width, config.heads, extra_key=extra_key, rngs=rngs)
        self.mlp = Mlp(config.width, config.mlp_width, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        x = x + self.attn(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class LogitScale(nnx.Module):
    """Factor of the embeddings of sounds, stored as its logarithm."""

    def __init__(self):
        self.log_logit_scale = nnx.Param(jnp.asarray(np.log(_FIRST_SCALE), jnp.float32))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return x * jnp.minimum(jnp.exp(self.log_logit_scale[...]), _LARGEST_SCALE)


def _head(width: int, dim: int, rngs: nnx.Rngs) -> nnx.Dict:
    return nnx.Dict(
        {"0": LayerNorm(width, epsilon=_EPSILON), "2": Linear(width, dim, use_bias=False, rngs=rngs)}
    )


def _positions(patches: int, width: int) -> nnx.Dict:
    return nnx.Dict({"pos_embed": nnx.Param(jnp.zeros((1, 1 + patches, width), jnp.float32))})


def _with_class(patches: Float[Array, "B N D"], first: nnx.Param, positions: nnx.Dict) -> Array:
    """Return patches behind the token of the class, all with their positions."""
    token = jnp.broadcast_to(first[...].astype(patches.dtype), (len(patches), 1, patches.shape[-1]))
    tokens = jnp.concatenate([token, patches], axis=1)
    return tokens + positions["pos_embed"][...].astype(tokens.dtype)
