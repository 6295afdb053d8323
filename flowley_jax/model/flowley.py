"""The whole network: velocity of the audio latent, given video, text and time."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flowley_jax.model import initializers
from flowley_jax.model.conditioning import (
    AUDIO_KERNEL,
    VIDEO_KERNEL,
    CrossInput,
    GlobalCondition,
    InputProjection,
)
from flowley_jax.model.config import ModelConfig
from flowley_jax.model.layers import Conv1d, Key, Modulation, fold, modulated_norm
from flowley_jax.model.multi_stream import MultiStreamBlock
from flowley_jax.model.single_stream import SingleStreamBlock
from flowley_jax.model.stack import Fetch, as_stored, run_blocks


class Constant(nnx.Variable):
    """A value that belongs to the model and is never trained: latent statistics, empty features."""


class Flowley(nnx.Module):
    """Velocity network of the rectified flow (arXiv 2607.06405).

    `latent_mean` and `latent_std`, (audio_dim,), are the training set's statistics; the network itself
    sees standardised latents only. `empty_video` (video_dim,) and `empty_text` (text_dim,) stand for a
    missing condition and are repeated over frames and tokens.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.config = config
        self.latent_mean = Constant(jnp.zeros((config.audio_dim,), jnp.float32))
        self.latent_std = Constant(jnp.ones((config.audio_dim,), jnp.float32))
        self.empty_video = Constant(jnp.zeros((config.video_dim,), jnp.float32))
        self.empty_text = Constant(jnp.zeros((config.text_dim,), jnp.float32))

        self.text_input = InputProjection(config.text_dim, config, first_kernel=None, kernel=None, rngs=rngs)
        self.video_input = InputProjection(
            config.video_dim, config, first_kernel=None, kernel=VIDEO_KERNEL, rngs=rngs
        )
        self.audio_input = InputProjection(
            config.audio_dim, config, first_kernel=AUDIO_KERNEL, kernel=AUDIO_KERNEL, rngs=rngs
        )
        self.global_condition = GlobalCondition(config, rngs=rngs)
        self.multi_stream = nnx.List([MultiStreamBlock(config, rngs=rngs) for _ in range(config.multi_depth)])
        reads_conditions = config.single_type == "psca"
        self.cross_video = CrossInput(config, rngs=rngs) if reads_conditions else None
        self.cross_text = CrossInput(config, rngs=rngs) if reads_conditions else None
        blocks = 1 if config.share_single else config.single_depth
        self.single_stream = nnx.List([SingleStreamBlock(config, rngs=rngs) for _ in range(blocks)])
        zeros = jax.nn.initializers.zeros
        self.final_modulation = Modulation(config.width, 2, rngs=rngs, dtype=dtype, init=zeros)
        self.final_conv = Conv1d(
            config.width,
            config.audio_dim,
            AUDIO_KERNEL,
            rngs=rngs,
            dtype=dtype,
            init=zeros,
            bias_init=initializers.zero_bias,
        )

    def __call__(
        self,
        latent: Float[Array, "B Ta audio_dim"],
        video: Float[Array, "B Tv video_dim"],
        text: Float[Array, "B Tt text_dim"],
        text_len: Int[Array, " B"],
        t: Float[Array, " B"],
        *,
        deterministic: bool = True,
        rng: Key | None = None,
        fetch: Fetch = as_stored,
    ) -> Float[Array, "B Ta audio_dim"]:
        """Velocity at the standardised noisy latent x_t.

        Args:
          latent: x_t, standardised.
          video, text: features; text is padded to Tt.
          text_len: number of valid text tokens; the joint attention does not read beyond it.
          t: time in [0, 1], 0 is noise and 1 is data.
          deterministic: True turns dropout off; otherwise `rng` must be given.
          rng: (B,) keys, one for every item: an item's dropout does not depend on the batch it is in.
          fetch: applied to the weights of a block where the block is computed; see `stack`.

        Returns: velocity, float32.
        """
        if not deterministic and rng is None:
            raise ValueError("deterministic=False needs rng, a key for every item's dropout")
        key = None if deterministic else rng
        audio = self.audio_input(latent)
        video = self.video_input(video)
        text = self.text_input(text)
        condition = self.global_condition(video, text, t, key=fold(key, 0))

        key_lengths = audio.shape[1] + video.shape[1] + text_len

        def joint(block, streams, index):
            return block(*streams, condition=condition, key_lengths=key_lengths, key=fold(key, 100 + index))

        audio, video, text = run_blocks(
            self.multi_stream,
            joint,
            (audio, video, text),
            range(self.config.multi_depth),
            config=self.config,
            fetch=fetch,
        )

        if self.cross_video is not None and self.cross_text is not None:
            video = self.cross_video(video, key=fold(key, 1))
            text = self.cross_text(text, key=fold(key, 2))

        def refine(block, audio, depth):
            index, fade_scale = depth
            return block(
                audio, video, text, condition=condition, fade_scale=fade_scale, key=fold(key, 200 + index)
            )

        audio = run_blocks(
            self.single_stream,
            refine,
            audio,
            list(enumerate(self.config.fade_scales)),
            config=self.config,
            fetch=fetch,
        )

        shift, scale = self.final_modulation(condition)
        return self.final_conv(modulated_norm(audio, shift, scale)).astype(jnp.float32)

    def standardise(self, latent: Float[Array, "B Ta audio_dim"]) -> Float[Array, "B Ta audio_dim"]:
        """(latent − mean) / std per channel."""
        return (latent - self.latent_mean[...][None, None]) / self.latent_std[...][None, None]

    def destandardise(self, latent: Float[Array, "B Ta audio_dim"]) -> Float[Array, "B Ta audio_dim"]:
        """latent · std + mean per channel."""
        return latent * self.latent_std[...][None, None] + self.latent_mean[...][None, None]
