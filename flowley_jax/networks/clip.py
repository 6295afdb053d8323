"""The image encoder of CLIP (Radford et al. 2021, arXiv 2103.00020).

Attributes are named as in open_clip's files, so that the path of a weight is its name there after the prefix
"visual.". Linear weights are (in, out); the kernel of the patches is (patch, patch, 3, width).
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.errors import FlowleyError
from flowley_jax.model.layers import per_channel
from flowley_jax.networks.layers import LayerNorm, Linear, linear, unit

Activation = Literal["quick_gelu", "gelu"]
PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Sizes of the image encoder.

    Attributes:
      image_size, patch_size: height and width in pixels.
      width, layers, heads: channels, blocks and attention heads of the transformer.
      mlp_width: hidden channels of a block's feed-forward net.
      dim: width of the embedding that text and images share.
      activation: "quick_gelu" for x·sigmoid(1.702 x), "gelu" for the exact GELU.
      dtype: compute type.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    dim: int
    activation: Activation
    dtype: str = "float32"

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise FlowleyError(f"CLIP: image {self.image_size} must be a multiple of patch {self.patch_size}")
        if self.width % self.heads:
            raise FlowleyError(f"CLIP: width {self.width} must be a multiple of {self.heads} heads")
        if self.activation not in ("quick_gelu", "gelu"):
            raise FlowleyError(f"CLIP: activation {self.activation!r} must be quick_gelu or gelu")

    @property
    def tokens(self) -> int:
        """Number of patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


CLIP_L14 = ClipConfig(
    image_size=224,
    patch_size=14,
    width=1024,
    layers=24,
    heads=16,
    mlp_width=4096,
    dim=768,
    activation="quick_gelu",
)


class ClipVision(nnx.Module):
    """Encoder of images to normalised embeddings."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        scale = width**-0.5
        normal = jax.nn.initializers.normal(scale)
        self.conv1 = Patches(config, rngs=rngs)
        self.class_embedding = nnx.Param(normal(rngs.params(), (width,), jnp.float32))
        self.positional_embedding = nnx.Param(normal(rngs.params(), (config.tokens, width), jnp.float32))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(config, rngs=rngs)
        self.ln_post = LayerNorm(width)
        self.proj = nnx.Param(normal(rngs.params(), (width, config.dim), jnp.float32))

    def __call__(self, frames: Float[Array, "B H W 3"]) -> Float[Array, "B dim"]:
        """Encode frames in [0, 255], of the model's image size, to float32 embeddings of unit length."""
        dtype = self.config.dtype
        pixels = (frames.astype(jnp.float32) / 255.0 - PIXEL_MEAN.reshape(1, 1, 1, 3)) / PIXEL_STD.reshape(
            1, 1, 1, 3
        )
        x = self.conv1(pixels.astype(dtype))
        first = jnp.broadcast_to(per_channel(self.class_embedding[...], x), (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1) + self.positional_embedding[...].astype(dtype)[None]
        x = self.transformer(self.ln_pre(x))
        embedding = (self.ln_post(x[:, 0]) @ self.proj[...].astype(dtype)).astype(jnp.float32)
        return unit(embedding)


class Patches(nnx.Module):
    """Linear map of every patch, in row order and without a bias."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        shape = (config.patch_size, config.patch_size, 3, config.width)
        self.weight = nnx.Param(jax.nn.initializers.lecun_normal()(rngs.params(), shape, jnp.float32))

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        patch, width = self.weight.shape[0], self.weight.shape[-1]
        batch, height, breadth, _ = pixels.shape
        rows, columns = height // patch, breadth // patch
        cells = pixels.reshape(batch, rows, patch, columns, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        matrix = self.weight[...].astype(pixels.dtype).reshape(-1, width)
        return cells.reshape(batch, rows * columns, -1) @ matrix


class Transformer(nnx.Module):
    """Sequence of pre-norm blocks."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.resblocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        for block in self.resblocks:
            x = block(x)
        return x


class Block(nnx.Module):
    """Attention and a two-layer net, each applied to normalised input and added to it."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.ln_1 = LayerNorm(config.width)
        self.attn = Attention(config, rngs=rngs)
        self.ln_2 = LayerNorm(config.width)
        self.mlp = Mlp(config, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Attention(nnx.Module):
    """Multi-head attention between all tokens."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.xavier_uniform()
        self.in_proj_weight = nnx.Param(init(rngs.params(), (config.width, 3 * config.width), jnp.float32))
        self.in_proj_bias = nnx.Param(jnp.zeros((3 * config.width,), jnp.float32))
        self.out_proj = Linear(config.width, config.width, rngs=rngs)
        self.heads = config.heads

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        batch, length, width = x.shape
        size = width // self.heads
        qkv = linear(x, self.in_proj_weight[...], self.in_proj_bias[...])
        heads = qkv.reshape(batch, length, 3, self.heads, size).transpose(2, 0, 3, 1, 4)
        scores = jnp.einsum(
            "bhqd,bhkd->bhqk", heads[0] / math.sqrt(size), heads[1], preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        attended = jnp.einsum("bhqk,bhkd->bhqd", weights, heads[2])
        return self.out_proj(attended.transpose(0, 2, 1, 3).reshape(batch, length, width))


class Mlp(nnx.Module):
    """Two linear maps with the activation between them."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.c_fc = Linear(config.width, config.mlp_width, rngs=rngs)
        self.c_proj = Linear(config.mlp_width, config.width, rngs=rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        hidden = self.c_fc(x)
        if self.activation == "quick_gelu":
            return self.c_proj(hidden * jax.nn.sigmoid(1.702 * hidden))
        return self.c_proj(jax.nn.gelu(hidden, approximate=False))
