"""Multi-stream blocks: audio, video and text attend jointly, each with its own weights."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flowley_jax.model import initializers
from flowley_jax.model.attention import QkvProjection, attention, merge_heads
from flowley_jax.model.config import AttentionImplementation, ModelConfig
from flowley_jax.model.layers import Conv1d, GatedMlp, Key, Linear, Modulation, fold, modulated_norm

BRANCH_KERNEL = 3


class Branch(nnx.Module):
    """One modality's part of a multi-stream block.

    Args:
      temporal: audio and video mix neighbours in time by convolutions, text does not.
    """

    def __init__(self, config: ModelConfig, *, temporal: bool, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        width, kernel = config.width, BRANCH_KERNEL if temporal else None
        self.qkv = QkvProjection(config, rngs=rngs)
        self.out = (
            Conv1d(width, width, kernel, rngs=rngs, dtype=dtype)
            if kernel
            else Linear(width, width, rngs=rngs, dtype=dtype)
        )
        self.ffn = GatedMlp(
            width, config.mlp_width, kernel=kernel, dropout=config.dropout, rngs=rngs, dtype=dtype
        )
        init = initializers.adaln_kernel(config.adaln_init)
        self.modulation = Modulation(width, 6, rngs=rngs, dtype=dtype, init=init)

    def project(self, x, modulation, *, position_scale: float | None):
        """q, k, v of the modulated input."""
        shift, scale = modulation[:2]
        return self.qkv(modulated_norm(x, shift, scale), position_scale=position_scale)

    def update(self, x, attended, modulation, *, key: Key | None):
        """Adds the attention result and the feed-forward net, each gated."""
        _, _, gate, shift, scale, ffn_gate = modulation
        x = x + gate * self.out(attended)
        return x + ffn_gate * self.ffn(modulated_norm(x, shift, scale), key=key)


class MultiStreamBlock(nnx.Module):
    """Joint attention over [audio; video; text] (paper, multi-stream block)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.audio = Branch(config, temporal=True, rngs=rngs)
        self.video = Branch(config, temporal=True, rngs=rngs)
        self.text = Branch(config, temporal=False, rngs=rngs)
        self.implementation: AttentionImplementation = config.attention_implementation

    def __call__(
        self,
        audio: Float[Array, "B Ta D"],
        video: Float[Array, "B Tv D"],
        text: Float[Array, "B Tt D"],
        *,
        condition: Float[Array, "B D"],
        key_lengths: Int[Array, " B"],
        key: Key | None,
    ):
        """Returns the three streams; `key_lengths` counts the joint keys before the padding of the text."""
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
        joint = merge_heads(attention(q, k, v, implementation=self.implementation, key_lengths=key_lengths))
        bounds = (audio.shape[1], audio.shape[1] + video.shape[1])
        return tuple(
            branch.update(x, attended, modulation, key=fold(key, index))
            for index, (branch, x, attended, modulation) in enumerate(
                zip(branches, streams, jnp.split(joint, bounds, axis=1), modulations, strict=True)
            )
        )
