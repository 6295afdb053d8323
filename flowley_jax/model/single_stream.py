"""Single-stream blocks: audio refines itself and reads text and video."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.model import initializers
from flowley_jax.model.attention import (
    CrossProjection,
    QkvProjection,
    attention,
    merge_heads,
    video_attention,
)
from flowley_jax.model.config import AttentionImplementation, ModelConfig
from flowley_jax.model.layers import Conv1d, GatedMlp, Key, Modulation, modulated_norm

BLOCK_KERNEL = 3


class ConditionReader(nnx.Module):
    """α·CrossAttention(audio, text) + (1−α)·PSCA(audio, video); no position embedding, no padding mask."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.video = CrossProjection(config, rngs=rngs)
        self.text = CrossProjection(config, rngs=rngs)
        self.balance = nnx.Param(jnp.asarray(0.5, jnp.float32)) if config.balance is None else None
        self.config = config

    def __call__(self, audio, video, text, *, fade_scale) -> Float[Array, "B Ta D"]:
        implementation = self.config.attention_implementation
        from_text = merge_heads(attention(*self.text(audio, text), implementation=implementation))
        from_video = merge_heads(
            video_attention(self.config, *self.video(audio, video), fade_scale=fade_scale)
        )
        learned = self.config.balance if self.balance is None else self.balance[...]
        balance = jnp.asarray(learned, audio.dtype)
        return balance * from_text + (1 - balance) * from_video


class SingleStreamBlock(nnx.Module):
    """Self-attention, then cross-attention to text and video, then a gated net (paper, single-stream).

    The "dit" variant has no cross-attention.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype, width = jnp.dtype(config.dtype), config.width
        self.qkv = QkvProjection(config, rngs=rngs)
        self.out = Conv1d(width, width, BLOCK_KERNEL, rngs=rngs, dtype=dtype)
        self.reader = ConditionReader(config, rngs=rngs) if config.single_type == "psca" else None
        self.ffn = GatedMlp(
            width, config.mlp_width, kernel=BLOCK_KERNEL, dropout=config.dropout, rngs=rngs, dtype=dtype
        )
        init = initializers.adaln_kernel(config.adaln_init)
        self.modulation = Modulation(width, 6, rngs=rngs, dtype=dtype, init=init)
        self.implementation: AttentionImplementation = config.attention_implementation

    def __call__(
        self,
        audio: Float[Array, "B Ta D"],
        video: Float[Array, "B Tv D"],
        text: Float[Array, "B Tt D"],
        *,
        condition: Float[Array, "B D"],
        fade_scale,
        key: Key | None,
    ) -> Float[Array, "B Ta D"]:
        """Returns the refined audio stream; `fade_scale` is β_ℓ of this depth."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulation(condition)
        q, k, v = self.qkv(modulated_norm(audio, shift, scale), position_scale=1.0)
        audio = audio + gate * self.out(merge_heads(attention(q, k, v, implementation=self.implementation)))
        if self.reader is not None:
            audio = audio + self.reader(audio, video, text, fade_scale=fade_scale)
        return audio + ffn_gate * self.ffn(modulated_norm(audio, ffn_shift, ffn_scale), key=key)
