"""The part of Synchformer that finds the offset between picture and sound from the features of both."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.networks.layers import LayerNorm, Linear, attend
from flowley_jax.networks.synchformer_config import (
    AUDIO_TOKENS,
    HEAD_SEGMENTS,
    VIDEO_TOKENS,
    SynchformerConfig,
)

_TOKENS = 2 + HEAD_SEGMENTS * (VIDEO_TOKENS + AUDIO_TOKENS)


class OffsetNetwork(nnx.Module):
    """Transformer on the tokens of both, with a classifier on its first token."""

    def __init__(self, config: SynchformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.OFF_tok = nnx.Param(jnp.zeros((1, 1, width), jnp.float32))
        self.MOD_tok = nnx.Param(jnp.zeros((1, 1, width), jnp.float32))
        self.vis_in_lnorm, self.aud_in_lnorm = LayerNorm(width), LayerNorm(width)
        positions = nnx.Param(jnp.zeros((1, _TOKENS, width), jnp.float32))
        self.pos_emb_cfg = nnx.Dict({"pos_emb": positions})
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.head_layers)])
        self.ln_f = LayerNorm(width)
        self.off_head = Linear(width, config.classes, rngs=rngs)

    def __call__(
        self, video: Float[Array, "B Nv D"], audio: Float[Array, "B Na D"]
    ) -> Float[Array, "B classes"]:
        x = self.tokens(video, audio)
        for block in self.blocks:
            x = block(x)
        return self.off_head(self.ln_f(x[:, 0]))

    def tokens(self, video: Float[Array, "B Nv D"], audio: Float[Array, "B Na D"]) -> Float[Array, "B N D"]:
        """Return the tokens of the first block: those of picture and sound, each behind a learned one."""

        def repeated(token: nnx.Param) -> Array:
            return jnp.broadcast_to(token[...].astype(video.dtype), (len(video), 1, video.shape[-1]))

        parts = (
            repeated(self.OFF_tok),
            self.vis_in_lnorm(video),
            repeated(self.MOD_tok),
            self.aud_in_lnorm(audio),
        )
        return jnp.concatenate(parts, axis=1) + self.pos_emb_cfg["pos_emb"][...].astype(video.dtype)


class Block(nnx.Module):
    """Attention and a two-layer net, each applied to normalised input and added to it."""

    def __init__(self, config: SynchformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.ln1, self.ln2 = LayerNorm(width), LayerNorm(width)
        names = ("key", "query", "value", "proj")
        self.attn = nnx.Dict({name: Linear(width, width, rngs=rngs) for name in names})
        self.mlp: Any = nnx.Dict(
            {
                "0": Linear(width, config.mlp_width, rngs=rngs),
                "2": Linear(config.mlp_width, width, rngs=rngs),
            }
        )
        self.heads = config.head_heads

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        y, maps = self.ln1(x), self.attn
        attended = attend(maps["query"](y), maps["key"](y), maps["value"](y), heads=self.heads)
        x = x + maps["proj"](attended)
        hidden = jax.nn.gelu(self.mlp["0"](self.ln2(x)), approximate=False)
        return x + self.mlp["2"](hidden)
