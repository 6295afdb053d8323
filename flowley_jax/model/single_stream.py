"""Single-stream blocks: audio attends to itself, and reads text and video by cross-attention."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.model.attention import (
    CrossProjection,
    QkvProjection,
    attention,
    merge_heads,
    video_attention,
)
from flowley_jax.model.config import ModelConfig
from flowley_jax.model.layers import Conv1d, GatedMlp, Key, Modulation, adaln_initializer, modulated_norm

BLOCK_KERNEL = 3


class ConditionReader(nnx.Module):
    """α·CrossAttention(audio, text) + (1−α)·PSCA(audio, video).

    Neither has a position embedding, and the padding of the text is read like any token.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.video = CrossProjection(config, config.single_heads, rngs=rngs)
        self.text = CrossProjection(config, config.single_heads, rngs=rngs)
        self.balance = nnx.Param(jnp.asarray(0.5, jnp.float32)) if config.balance is None else None
        self.config = config

    @jax.named_scope("condition_reader")
    def __call__(
        self,
        audio: Float[Array, "B Ta D"],
        video: Float[Array, "B Tv D"],
        text: Float[Array, "B Tt D"],
        *,
        fade_scale: float | Float[Array, ""],
    ) -> Float[Array, "B Ta D"]:
        config = self.config
        from_text = attention(
            *self.text(audio, text), scale=config.qk_scale, implementation=config.attention_implementation
        )
        from_video = video_attention(config, *self.video(audio, video), fade_scale=fade_scale)
        balance = jnp.asarray(config.balance if self.balance is None else self.balance[...], audio.dtype)
        return balance * merge_heads(from_text) + (1 - balance) * merge_heads(from_video)


class SingleStreamBlock(nnx.Module):
    """Self-attention, cross-attention to text and video, and a gated net (arXiv 2607.06405, single-stream).

    The "dit" variant has no cross-attention.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype, width = jnp.dtype(config.dtype), config.width
        self.qkv = QkvProjection(config, config.single_heads, rngs=rngs)
        self.out = Conv1d(width, width, BLOCK_KERNEL, rngs=rngs, dtype=dtype)
        self.reader = ConditionReader(config, rngs=rngs) if config.single_type == "psca" else None
        self.ffn = GatedMlp(
            width, config.mlp_width, kernel=BLOCK_KERNEL, dropout=config.dropout, rngs=rngs, dtype=dtype
        )
        init = adaln_initializer(config.adaln_init)
        self.modulation = Modulation(width, 6, rngs=rngs, dtype=dtype, init=init)
        self.config = config

    @jax.named_scope("single_stream_block")
    def __call__(
        self,
        audio: Float[Array, "B Ta D"],
        video: Float[Array, "B Tv D"],
        text: Float[Array, "B Tt D"],
        *,
        condition: Float[Array, "B D"],
        fade_scale: float | Float[Array, ""],
        key: Key | None,
    ) -> Float[Array, "B Ta D"]:
        """Return the audio stream after one block.

        Args:
          audio: the stream that is updated.
          video, text: the projected streams that it reads.
          condition: global condition c.
          fade_scale: β_ℓ of this depth.
          key: (B,) dropout keys, or None.
        """
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulation(condition)
        q, k, v = self.qkv(modulated_norm(audio, shift, scale), position_scale=1.0)
        attended = attention(
            q,
            k,
            v,
            scale=self.config.qk_scale,
            implementation=self.config.attention_implementation,
        )
        audio = audio + gate * self.out(merge_heads(attended))
        if self.reader is not None:
            audio = audio + self.reader(audio, video, text, fade_scale=fade_scale)
        return audio + ffn_gate * self.ffn(modulated_norm(audio, ffn_shift, ffn_scale), key=key)
