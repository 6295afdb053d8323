"""The whole network: velocity of the audio latent, given video, text and time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

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
from flowley_jax.model.stack import GatherWeights, identity, run_blocks

# Every part folds its own number into an item's dropout key. The gaps leave room for 100 multi-stream blocks
# before the numbers of the two stacks meet. Changing a number changes the dropout of runs that resume.
_GLOBAL_CONDITION_STREAM = 0
_CROSS_VIDEO_STREAM = 1
_CROSS_TEXT_STREAM = 2
_FIRST_MULTI_STREAM = 100
_FIRST_SINGLE_STREAM = 200


class Constant(nnx.Variable):
    """A value that belongs to the model and is never trained: latent statistics and empty features."""


class Flowley(nnx.Module):
    """Velocity network of the rectified flow (arXiv 2607.06405; equations in docs/model.md).

    Attributes:
      config: sizes and variant.
      latent_mean, latent_std: (audio_dim,) statistics of the training set; the network itself sees only
        standardised latents.
      empty_video, empty_text: (video_dim,) and (text_dim,) features that replace a missing condition,
        repeated over frames and tokens.
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
            bias_init=zeros,
        )

    def __call__(
        self,
        latent: Float[Array, "B Ta audio_dim"],
        video: Float[Array, "B Tv video_dim"],
        text: Float[Array, "B Tt text_dim"],
        text_len: Int[Array, " B"],
        t: Float[Array, " B"],
        r: Float[Array, " B"] | None = None,
        *,
        deterministic: bool = True,
        rng: Key | None = None,
        gather_weights: GatherWeights = identity,
    ) -> Float[Array, "B Ta audio_dim"]:
        """Return the velocity at the noisy latent x_t, or its mean from t to r, in float32.

        The mean velocity is meant for networks that were trained as flow maps (`flowley_jax.flow.flow_map`).
        The last blocks and the final layer then see r instead of t, which needs no further weights (Decoupled
        MeanFlow, Lee et al. 2025).

        Args:
          latent: x_t, standardised.
          video, text: features; text is padded to Tt.
          text_len: number of valid text tokens; the joint attention does not read the others.
          t: time in [0, 1]; 0 is noise and 1 is data.
          r: later time, at least t; None for t.
          deterministic: turn dropout off; False needs `rng`.
          rng: (B,) keys, one for each item, so that an item's dropout does not depend on its batch.
          gather_weights: applied to the weights of a block inside its step; see `run_blocks`.

        Raises:
          ValueError: dropout is on and `rng` is missing.
        """
        velocity, _ = self.velocity_and_audio_stream(
            latent,
            video,
            text,
            text_len,
            t,
            r,
            deterministic=deterministic,
            rng=rng,
            gather_weights=gather_weights,
        )
        return velocity

    @jax.named_scope("flowley")
    def velocity_and_audio_stream(
        self,
        latent: Float[Array, "B Ta audio_dim"],
        video: Float[Array, "B Tv video_dim"],
        text: Float[Array, "B Tt text_dim"],
        text_len: Int[Array, " B"],
        t: Float[Array, " B"],
        r: Float[Array, " B"] | None = None,
        *,
        deterministic: bool = True,
        rng: Key | None = None,
        gather_weights: GatherWeights = identity,
    ) -> tuple[Float[Array, "B Ta audio_dim"], Float[Array, "B Ta width"]]:
        """Return the velocity, and the audio stream after the multi-stream blocks in the compute type."""
        if not deterministic and rng is None:
            raise ValueError("deterministic=False needs rng, one dropout key for each item")
        key = None if deterministic else rng
        with jax.named_scope("audio"):
            audio = self.audio_input(latent)
        with jax.named_scope("video"):
            video = self.video_input(video)
        with jax.named_scope("text"):
            text = self.text_input(text)
        condition = self.global_condition(video, text, t, key=fold(key, _GLOBAL_CONDITION_STREAM))
        last = condition
        if r is not None:
            last = self.global_condition(video, text, r, key=fold(key, _GLOBAL_CONDITION_STREAM))

        audio, video, text = self._run_multi_stream(
            (audio, video, text), text_len, condition, key, gather_weights
        )
        refined = self._run_single_stream(audio, video, text, (condition, last), key, gather_weights)

        with jax.named_scope("final_layer"):
            shift, scale = self.final_modulation(last)
            velocity = self.final_conv(modulated_norm(refined, shift, scale)).astype(jnp.float32)
        return velocity, audio

    def _run_multi_stream(
        self,
        streams: tuple[Array, Array, Array],
        text_len: Array,
        condition: Array,
        key: Key | None,
        gather_weights: GatherWeights,
    ) -> tuple[Array, Array, Array]:
        audio, video, _ = streams
        key_lengths = audio.shape[1] + video.shape[1] + text_len

        def apply(block: MultiStreamBlock, streams: tuple[Array, Array, Array], index: Any):
            block_key = fold(key, _FIRST_MULTI_STREAM + index)
            return block(*streams, condition=condition, key_lengths=key_lengths, key=block_key)

        return run_blocks(
            self.multi_stream,
            apply,
            streams,
            range(self.config.multi_depth),
            config=self.config,
            gather_weights=gather_weights,
        )

    def _run_single_stream(
        self,
        audio: Array,
        video: Array,
        text: Array,
        conditions: tuple[Array, Array],
        key: Key | None,
        gather_weights: GatherWeights,
    ) -> Array:
        """Run the single-stream blocks; the first half sees the first condition, the others the second."""
        if self.cross_video is not None and self.cross_text is not None:
            video = self.cross_video(video, key=fold(key, _CROSS_VIDEO_STREAM))
            text = self.cross_text(text, key=fold(key, _CROSS_TEXT_STREAM))

        first, last = conditions
        half = self.config.single_depth // 2

        def apply(block: SingleStreamBlock, audio: Array, depth: tuple[Any, Any]) -> Array:
            index, fade_scale = depth
            block_key = fold(key, _FIRST_SINGLE_STREAM + index)
            condition = first if first is last else jnp.where(index < half, first, last)
            return block(audio, video, text, condition=condition, fade_scale=fade_scale, key=block_key)

        return run_blocks(
            self.single_stream,
            apply,
            audio,
            list(enumerate(self.config.fade_scales)),
            config=self.config,
            gather_weights=gather_weights,
        )

    def standardise(self, latent: Float[Array, "B Ta audio_dim"]) -> Float[Array, "B Ta audio_dim"]:
        """Return (latent − mean) / std per channel."""
        return (latent - self.latent_mean[...][None, None]) / self.latent_std[...][None, None]

    def destandardise(self, latent: Float[Array, "B Ta audio_dim"]) -> Float[Array, "B Ta audio_dim"]:
        """Return latent · std + mean per channel."""
        return latent * self.latent_std[...][None, None] + self.latent_mean[...][None, None]


@functools.lru_cache(maxsize=32)
def abstract_model(config: ModelConfig) -> tuple[nnx.GraphDef, Any, Any]:
    """Trace the constructor once per configuration, without allocating any weight.

    The returned states are shared between callers: do not modify them.

    Returns:
      The graph definition, the shapes of the parameters and the shapes of the constants, both states of
      `jax.ShapeDtypeStruct` leaves.
    """
    model = nnx.eval_shape(lambda: Flowley(config, rngs=nnx.Rngs(0)))
    graphdef, parameters, constants = nnx.split(model, nnx.Param, Constant)
    return graphdef, parameters, constants


def merge_model(config: ModelConfig, parameters: Any, constants: Any) -> Flowley:
    """Build the model of this configuration around existing parameters and constants."""
    # Copy the variables, not the arrays: setting a value of the model must not change the given states.
    return nnx.merge(abstract_model(config)[0], parameters, constants, copy=True)
