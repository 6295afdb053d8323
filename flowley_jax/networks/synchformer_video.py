"""The video network of Synchformer: a transformer whose attention is divided between time and space.

See Bertasius et al. 2021 (arXiv 2102.05095). The published network is made of MotionFormer's layers (Patrick
et al. 2021, arXiv 2106.05392).
"""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.networks.layers import LayerNorm, Linear, Mlp, attend
from flowley_jax.networks.synchformer_aggregation import Aggregation
from flowley_jax.networks.synchformer_config import IMAGE_SIZE, VIDEO_TOKENS, SynchformerConfig
from flowley_jax.networks.video_patches import VideoPatches

_PATCH_FRAMES, _PATCH_SIZE = 2, 16
# Patches of one time.
_PLACES = (IMAGE_SIZE // _PATCH_SIZE) ** 2
_EPSILON = 1e-6


class VideoNetwork(nnx.Module):
    """Network from segments of frames to one token for every two frames."""

    def __init__(self, config: SynchformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.cls_token = nnx.Param(jnp.zeros((1, 1, width), jnp.float32))
        self.pos_embed = nnx.Param(jnp.zeros((1, 1 + _PLACES, width), jnp.float32))
        self.temp_embed = nnx.Param(jnp.zeros((1, VIDEO_TOKENS, width), jnp.float32))
        self.patch_embed_3d = nnx.Dict({"proj": VideoPatches(_PATCH_FRAMES, _PATCH_SIZE, width, rngs=rngs)})
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.norm = LayerNorm(width, epsilon=_EPSILON)
        self.spatial_attn_agg = Aggregation(config, rngs=rngs)

    def __call__(self, segments: Float[Array, "B 16 224 224 3"]) -> Float[Array, "B 8 D"]:
        x = self.tokens(segments)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x[:, 1:])
        return self.spatial_attn_agg(x.reshape(len(x), VIDEO_TOKENS, _PLACES, -1))

    def tokens(self, segments: Float[Array, "B 16 224 224 3"]) -> Float[Array, "B N D"]:
        """Return the tokens of the first block: that of the class, then those of patches in order of time."""
        patches = self.patch_embed_3d["proj"](segments)
        batch, _, width = patches.shape
        places, times = self.pos_embed[...], self.temp_embed[...]
        positions = (places[:, None, 1:] + times[:, :, None]).reshape(1, -1, width).astype(patches.dtype)
        first = (self.cls_token[...] + places[:, :1]).astype(patches.dtype)
        return jnp.concatenate([jnp.broadcast_to(first, (batch, 1, width)), patches + positions], axis=1)


class Block(nnx.Module):
    """Attention across time, attention across space and a two-layer net, each on normalised input."""

    def __init__(self, config: SynchformerConfig, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config.width, epsilon=_EPSILON)
        self.norm2 = LayerNorm(config.width, epsilon=_EPSILON)
        self.norm3 = LayerNorm(config.width, epsilon=_EPSILON)
        self.timeattn = DividedAttention(config, across="time", rngs=rngs)
        self.attn = DividedAttention(config, across="space", rngs=rngs)
        self.mlp = Mlp(config.width, config.mlp_width, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        x = x + self.timeattn(self.norm3(x))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DividedAttention(nnx.Module):
    """Attention between patches of one place or of one time.

    The class token, which comes first, attends to all tokens, and every patch attends to it too.
    """

    def __init__(self, config: SynchformerConfig, *, across: Literal["time", "space"], rngs: nnx.Rngs):
        self.qkv = Linear(config.width, 3 * config.width, rngs=rngs)
        self.proj = Linear(config.width, config.width, rngs=rngs)
        self.heads, self.across_time = config.heads, across == "time"

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        query, key, value = jnp.split(self.qkv(x), 3, axis=-1)
        first = attend(query[:, :1], key, value, heads=self.heads)
        groups = attend(
            self._grouped(query), self._with_first(key), self._with_first(value), heads=self.heads
        )
        rest = groups.swapaxes(1, 2) if self.across_time else groups
        return self.proj(jnp.concatenate([first, rest.reshape(x[:, 1:].shape)], axis=1))

    def _grouped(self, x: Float[Array, "B N D"]) -> Float[Array, "B G L D"]:
        """Return the patches in groups that attend to each other."""
        grid = x[:, 1:].reshape(len(x), VIDEO_TOKENS, _PLACES, -1)
        return grid.swapaxes(1, 2) if self.across_time else grid

    def _with_first(self, x: Float[Array, "B N D"]) -> Float[Array, "B G M D"]:
        """Return the groups, each with the class token in front."""
        groups = self._grouped(x)
        first = jnp.broadcast_to(x[:, None, :1], (*groups.shape[:2], 1, x.shape[-1]))
        return jnp.concatenate([first, groups], axis=2)
