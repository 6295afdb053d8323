"""The audio VAE between log-mel frames and latents, as MMAudio published it (Cheng et al. 2024).

Its layers preserve magnitudes in expectation, after Karras et al. 2023 ("Analyzing and Improving the Training
Dynamics of Diffusion Models"). Attributes are named as in the published file, so that the path of a weight is
its name there. Sequences are (B, time, channels); kernels are (kernel, in, out) and already normalised.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.model.layers import convolution, per_channel

_EPSILON = 1e-4
_SILU_GAIN = 0.596
_BRANCH = 0.3
_ACTIVATION_LIMIT = 256.0
_LOGVAR_RANGE = (-30.0, 20.0)
_QUERY_BLOCK = 1024
# Latents on each side that a frame depends on after the decoder's attention.
DECODER_CONTEXT = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Sizes of the VAE.

    Attributes:
      bins: bins of the mel front end.
      latent_dim: channels C of a latent.
      width: channels of the outermost level.
      multipliers: channels of each level, relative to `width`; the number of frames halves after the first.
      blocks: residual blocks of an encoder level; a decoder level has one more.
      kernel: length of the convolutions' kernels.
      dtype: compute type.
    """

    bins: int
    latent_dim: int
    width: int
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2
    kernel: int = 3
    dtype: str = "float32"


VAE_16K = VaeConfig(bins=80, latent_dim=20, width=384)
VAE_44K = VaeConfig(bins=128, latent_dim=40, width=512)


class AudioVae(nnx.Module):
    """Encoder and decoder, with the statistics that standardise each mel bin."""

    def __init__(self, config: VaeConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.data_mean = nnx.Param(jnp.zeros((config.bins,), jnp.float32))
        self.data_std = nnx.Param(jnp.ones((config.bins,), jnp.float32))
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def encode(self, log_mel: Float[Array, "B frames bins"]) -> tuple[Array, Array]:
        """Encode log-mel frames to mean and standard deviation, each (B, floor(frames/2), C) float32."""
        standard = (log_mel - per_channel(self.data_mean[...], log_mel)) / per_channel(
            self.data_std[...], log_mel
        )
        mean, logvar = jnp.split(self.encoder(standard).astype(jnp.float32), 2, axis=-1)
        return mean, jnp.exp(jnp.clip(logvar, *_LOGVAR_RANGE) / 2)

    def decode(self, latents: Float[Array, "B Ta C"]) -> Float[Array, "B frames bins"]:
        """Decode latents to 2·Ta log-mel frames, float32."""
        return self.finish(self.begin(latents))

    def begin(self, latents: Float[Array, "B Ta C"]) -> Float[Array, "B Ta D"]:
        """Run the first part of the decoder, in which all latents attend to each other."""
        return self.decoder.begin(latents)

    def finish(self, hidden: Float[Array, "B Ta D"]) -> Float[Array, "B frames bins"]:
        """Run the rest, in which a frame depends on at most `DECODER_CONTEXT` latents on each side."""
        standard = self.decoder.finish(hidden).astype(jnp.float32)
        return standard * per_channel(self.data_std[...], standard) + per_channel(
            self.data_mean[...], standard
        )


class Encoder(nnx.Module):
    """Encoder of standardised log-mel frames to mean and log-variance, concatenated along channels."""

    def __init__(self, config: VaeConfig, *, rngs: nnx.Rngs):
        widths = [config.width * multiplier for multiplier in config.multipliers]
        top = widths[-1]
        self.conv_in = Conv(config.bins, widths[0], config, rngs=rngs)
        self.down = nnx.List([])
        inputs = widths[0]
        for level, width in enumerate(widths):
            self.down.append(Level(inputs, width, config.blocks, config, rngs=rngs))
            if level == 0:
                self.down[0].downsample = Downsample(width, config, rngs=rngs)
            inputs = width
        self.mid = Middle(top, config, rngs=rngs)
        self.learnable_gain = nnx.Param(jnp.zeros((), jnp.float32))
        self.conv_out = Conv(top, 2 * config.latent_dim, config, rngs=rngs)

    def __call__(self, x: Float[Array, "B frames bins"]) -> Float[Array, "B Ta moments"]:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
            if level.downsample is not None:
                x = level.downsample(x)
        x = limited(self.mid(x))
        return self.conv_out(mp_silu(x), gain=self.learnable_gain[...] + 1)


class Decoder(nnx.Module):
    """Decoder of latents to standardised log-mel frames."""

    def __init__(self, config: VaeConfig, *, rngs: nnx.Rngs):
        widths = [config.width * multiplier for multiplier in config.multipliers]
        top = widths[-1]
        self.conv_in = Conv(config.latent_dim, top, config, rngs=rngs)
        self.mid = Middle(top, config, rngs=rngs)
        inputs = [*widths[1:], top]
        self.up = nnx.List([])
        for level, width in enumerate(widths):
            self.up.append(Level(inputs[level], width, config.blocks + 1, config, rngs=rngs))
            if level == 1:
                self.up[1].upsample = Upsample(width, config, rngs=rngs)
        self.learnable_gain = nnx.Param(jnp.zeros((), jnp.float32))
        self.conv_out = Conv(widths[0], config.bins, config, rngs=rngs)

    def begin(self, latents: Float[Array, "B Ta C"]) -> Float[Array, "B Ta D"]:
        return limited(self.mid(self.conv_in(latents)))

    def finish(self, x: Float[Array, "B Ta D"]) -> Float[Array, "B frames bins"]:
        for level in reversed(self.up):
            x = level(x)
            if level.upsample is not None:
                x = level.upsample(x)
        return self.conv_out(mp_silu(x), gain=self.learnable_gain[...] + 1)


class Level(nnx.Module):
    """Sequence of residual blocks of one width."""

    def __init__(self, inputs: int, width: int, blocks: int, config: VaeConfig, *, rngs: nnx.Rngs):
        self.block = nnx.List(
            [ResidualBlock(inputs if i == 0 else width, width, config, rngs=rngs) for i in range(blocks)]
        )
        self.downsample: Downsample | None = nnx.data(None)
        self.upsample: Upsample | None = nnx.data(None)

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        for block in self.block:
            x = block(x)
        return limited(x)


class Downsample(nnx.Module):
    """Average of pairs of frames between two linear maps; an odd last frame is dropped."""

    def __init__(self, width: int, config: VaeConfig, *, rngs: nnx.Rngs):
        self.conv1 = Conv(width, width, config, kernel=1, rngs=rngs)
        self.conv2 = Conv(width, width, config, kernel=1, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B half D"]:
        batch, length, width = x.shape
        pairs = self.conv1(x)[:, : length // 2 * 2].reshape(batch, length // 2, 2, width)
        return self.conv2(jnp.mean(pairs, axis=2))


class Upsample(nnx.Module):
    """Repetition of every frame, followed by a convolution."""

    def __init__(self, width: int, config: VaeConfig, *, rngs: nnx.Rngs):
        self.conv = Conv(width, width, config, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B twice D"]:
        return self.conv(jnp.repeat(x, 2, axis=1))


class Middle(nnx.Module):
    """Residual block, attention and a second residual block."""

    def __init__(self, width: int, config: VaeConfig, *, rngs: nnx.Rngs):
        self.block_1 = ResidualBlock(width, width, config, rngs=rngs)
        self.attn_1 = Attention(width, config, rngs=rngs)
        self.block_2 = ResidualBlock(width, width, config, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.block_2(self.attn_1(self.block_1(x)))


class ResidualBlock(nnx.Module):
    """Two convolutions and a skip connection, both on frames of unit magnitude."""

    def __init__(self, inputs: int, width: int, config: VaeConfig, *, rngs: nnx.Rngs):
        self.conv1 = Conv(inputs, width, config, rngs=rngs)
        self.conv2 = Conv(width, width, config, rngs=rngs)
        self.nin_shortcut = Conv(inputs, width, config, kernel=1, rngs=rngs) if inputs != width else None

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        x = unit(x)
        branch = self.conv2(mp_silu(self.conv1(mp_silu(x))))
        return mp_sum(x if self.nin_shortcut is None else self.nin_shortcut(x), branch)


class Attention(nnx.Module):
    """Single-head attention over the whole sequence."""

    def __init__(self, width: int, config: VaeConfig, *, rngs: nnx.Rngs):
        self.qkv = Conv(width, 3 * width, config, kernel=1, rngs=rngs)
        self.proj_out = Conv(width, width, config, kernel=1, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, width, 3)
        query, key, value = (unit(qkv[..., index]) for index in range(3))
        return mp_sum(x, self.proj_out(_attend(query, key, value)))


class Conv(nnx.Module):
    """Convolution over time with zero "same" padding and no bias; a kernel of 1 maps each frame linearly."""

    def __init__(
        self, inputs: int, outputs: int, config: VaeConfig, *, kernel: int | None = None, rngs: nnx.Rngs
    ):
        shape = (config.kernel if kernel is None else kernel, inputs, outputs)
        raw = jax.random.normal(rngs.params(), shape, jnp.float32)
        self.weight = nnx.Param(raw / math.sqrt(shape[0] * inputs))
        self.dtype = config.dtype

    def __call__(self, x: Float[Array, "B T I"], gain: Array | float = 1.0) -> Float[Array, "B T O"]:
        kernel = (self.weight[...] * gain).astype(self.dtype)
        if len(kernel) == 1:
            return (x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel[0]).reshape(*x.shape[:-1], -1)
        return convolution(x.astype(self.dtype), kernel)


def _attend(query: Array, key: Array, value: Array) -> Array:
    """Attend in blocks of queries, so that memory grows linearly with the length.

    Args:
      query, key, value: (B, T, D).

    Returns:
      Weighted values (B, T, D).
    """

    def attend(query: Array) -> Array:
        scores = jnp.einsum("bqd,bkd->bqk", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores / math.sqrt(query.shape[-1]), axis=-1).astype(value.dtype)
        return jnp.einsum("bqk,bkd->bqd", weights, value)

    batch, length, width = query.shape
    if length <= _QUERY_BLOCK:
        return attend(query)
    blocks = -(-length // _QUERY_BLOCK)
    padded = jnp.pad(query, ((0, 0), (0, blocks * _QUERY_BLOCK - length), (0, 0)))
    split = jnp.moveaxis(padded.reshape(batch, blocks, _QUERY_BLOCK, width), 1, 0)
    attended = jnp.moveaxis(jax.lax.map(attend, split), 0, 1)
    return attended.reshape(batch, -1, width)[:, :length]


def unit(x: Array) -> Array:
    """Return x / (1e-4 + root mean square over channels), which has unit magnitude."""
    y = x.astype(jnp.float32)
    scale = jnp.sqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True))
    return (y / (_EPSILON + scale)).astype(x.dtype)


def mp_silu(x: Array) -> Array:
    """Apply SiLU, scaled so that it preserves the magnitude of normally distributed values."""
    return jax.nn.silu(x) / _SILU_GAIN


def mp_sum(skip: Array, branch: Array) -> Array:
    """Return 0.7·skip + 0.3·branch, divided by sqrt(0.7² + 0.3²) to preserve the magnitude."""
    return ((1 - _BRANCH) * skip + _BRANCH * branch) / math.sqrt((1 - _BRANCH) ** 2 + _BRANCH**2)


def limited(x: Array) -> Array:
    """Clip activations to ±256."""
    return jnp.clip(x, -_ACTIVATION_LIMIT, _ACTIVATION_LIMIT)


def effective_kernel(raw: Array) -> Array:
    """Return a stored kernel (kernel, in, out) with every output's weights scaled to almost unit norm."""
    count = raw.shape[0] * raw.shape[1]
    norm = jnp.sqrt(jnp.sum(jnp.square(raw), axis=(0, 1), keepdims=True))
    return raw / (_EPSILON + norm / math.sqrt(count)) / math.sqrt(count)
