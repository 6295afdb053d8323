"""Multi-stream blocks: audio, video and text attend jointly, each with its own weights."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flowley_jax.model.attention import QkvProjection, attention, merge_heads
from flowley_jax.model.config import ModelConfig
from flowley_jax.model.layers import (
    Conv1d,
    GatedMlp,
    Key,
    Linear,
    Modulation,
    adaln_initializer,
    fold,
    modulated_norm,
)

BRANCH_KERNEL = 3


class Branch(nnx.Module):
    """One modality's part of a multi-stream block.

    Args:
      temporal: mix neighbours in time by convolutions, for audio and video; text uses linear maps.
    """

    def __init__(self, config: ModelConfig, *, temporal: bool, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        width, kernel = config.width, BRANCH_KERNEL if temporal else None
        self.qkv = QkvProjection(config, config.multi_heads, rngs=rngs)
        self.out = (
            Conv1d(width, width, kernel, rngs=rngs, dtype=dtype)
            if kernel
            else Linear(width, width, rngs=rngs, dtype=dtype)
        )
        self.ffn = GatedMlp(
            width, config.mlp_width, kernel=kernel, dropout=config.dropout, rngs=rngs, dtype=dtype
        )
        init = adaln_initializer(config.adaln_init)
        self.modulation = Modulation(width, 6, rngs=rngs, dtype=dtype, init=init)

    def project(
        self,
        x: Float[Array, "B T D"],
        modulation: Sequence[Float[Array, "B 1 D"]],
        *,
        position_scale: float | None,
    ) -> tuple[Float[Array, "B T H d"], Float[Array, "B T H d"], Float[Array, "B T H d"]]:
        """Return q, k and v of the modulated input."""
        shift, scale = modulation[:2]
        return self.qkv(modulated_norm(x, shift, scale), position_scale=position_scale)

    def update(
        self,
        x: Float[Array, "B T D"],
        attended: Float[Array, "B T D"],
        modulation: Sequence[Float[Array, "B 1 D"]],
        *,
        key: Key | None,
    ) -> Float[Array, "B T D"]:
        """Add the attention result and the feed-forward net, each gated."""
        _, _, gate, ffn_shift, ffn_scale, ffn_gate = modulation
        x = x + gate * self.out(attended)
        return x + ffn_gate * self.ffn(modulated_norm(x, ffn_shift, ffn_scale), key=key)


class MultiStreamBlock(nnx.Module):
    """Joint attention over [audio; video; text] (arXiv 2607.06405, multi-stream block)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.audio = Branch(config, temporal=True, rngs=rngs)
        self.video = Branch(config, temporal=True, rngs=rngs)
        self.text = Branch(config, temporal=False, rngs=rngs)
        self.config = config

    @jax.named_scope("multi_stream_block")
    def __call__(
        self,
        audio: Float[Array, "B Ta D"],
        video: Float[Array, "B Tv D"],
        text: Float[Array, "B Tt D"],
        *,
        condition: Float[Array, "B D"],
        key_lengths: Int[Array, " B"],
        key: Key | None,
    ) -> tuple[Float[Array, "B Ta D"], Float[Array, "B Tv D"], Float[Array, "B Tt D"]]:
        """Return the three streams after one block.

        Args:
          audio, video, text: the three streams.
          condition: global condition c.
          key_lengths: number of joint keys of each item before the padding of its text.
          key: (B,) dropout keys, or None.
        """
        # Audio and video share one clock; text has no rotary embedding.
        position_scales = (1.0, audio.shape[1] / video.shape[1], None)
        branches, streams = (self.audio, self.video, self.text), (audio, video, text)
        modulations = [branch.modulation(condition) for branch in branches]
        projected = [
            branch.project(x, modulation, position_scale=scale)
            for branch, x, modulation, scale in zip(
                branches, streams, modulations, position_scales, strict=True
            )
        ]
        q, k, v = (jnp.concatenate(parts, axis=1) for parts in zip(*projected, strict=True))
        joint = attention(
            q,
            k,
            v,
            scale=self.config.qk_scale,
            implementation=self.config.attention_implementation,
            key_lengths=key_lengths,
        )
        bounds = (audio.shape[1], audio.shape[1] + video.shape[1])
        audio, video, text = (
            branch.update(x, attended, modulation, key=fold(key, index))
            for index, (branch, x, attended, modulation) in enumerate(
                zip(
                    branches,
                    streams,
                    jnp.split(merge_heads(joint), bounds, axis=1),
                    modulations,
                    strict=True,
                )
            )
        )
        return audio, video, text
