"""BigVGAN, a vocoder from log-mel frames to a wave (Lee et al. 2023, arXiv 2206.04658).

Attributes are named as in the published files, so that the path of a weight is its name there. Sequences are
(B, time, channels). Kernels are (kernel, in, out), and (in, kernel, out) for transposed convolutions.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.errors import FlowleyError
from flowley_jax.model.layers import per_channel

_EDGE_KERNEL = 7
_TAPS = 12
_TINY = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class BigVganConfig:
    """Sizes of the vocoder.

    Attributes:
      bins: bins of the mel front end.
      width: channels before the first upsampling; every upsampling halves them.
      rates, kernels: rate and kernel length of each transposed convolution.
      block_kernels, dilations: kernel lengths and dilations of the AMP blocks after each upsampling.
      use_bias_at_final: whether the last convolution has a bias; named as in the published `config.json`.
      use_tanh_at_final: whether tanh bounds the wave instead of clipping; named as there.
      dtype: compute type.
    """

    bins: int
    width: int = 1536
    rates: tuple[int, ...] = (4, 4, 2, 2, 2, 2)
    kernels: tuple[int, ...] = (8, 8, 4, 4, 4, 4)
    block_kernels: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[int, ...] = (1, 3, 5)
    use_bias_at_final: bool = True
    use_tanh_at_final: bool = True
    dtype: str = "float32"

    def __post_init__(self):
        if len(self.rates) != len(self.kernels):
            raise FlowleyError(f"BigVGAN: rates {self.rates} and kernels {self.kernels} differ in number")
        for rate, kernel in zip(self.rates, self.kernels, strict=True):
            if kernel % rate or (kernel - rate) % 2:
                raise FlowleyError(
                    f"BigVGAN: kernel {kernel} must be a multiple of rate {rate}, and their difference even"
                )
        if self.width % 2 ** len(self.rates):
            raise FlowleyError(f"BigVGAN: width {self.width} cannot be halved {len(self.rates)} times")

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.rates)

    @property
    def context(self) -> int:
        """Frames on each side that a sample depends on, rounded up."""
        reach = _EDGE_KERNEL // 2
        hop = 1.0
        for rate, kernel in zip(self.rates, self.kernels, strict=True):
            reach += kernel / rate / 2 / hop
            hop *= rate
            # An activation reaches 3 samples in upsampling and 3 in downsampling (6 at twice the rate).
            block = sum(
                (dilation + 1) * (max(self.block_kernels) - 1) / 2 + 2 * _TAPS / 2
                for dilation in self.dilations
            )
            reach += block / hop
        return math.ceil(reach + (_TAPS / 2 + _EDGE_KERNEL // 2) / hop)


BIGVGAN_16K = BigVganConfig(bins=80)
BIGVGAN_44K = BigVganConfig(
    bins=128,
    rates=(8, 4, 2, 2, 2, 2),
    kernels=(16, 8, 4, 4, 4, 4),
    use_bias_at_final=False,
    use_tanh_at_final=False,
)


class BigVgan(nnx.Module):
    """The generator of BigVGAN."""

    def __init__(self, config: BigVganConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.conv_pre = Conv(config.bins, config.width, _EDGE_KERNEL, config, rngs=rngs)
        self.ups = nnx.List([])
        self.resblocks = nnx.List([])
        width = config.width
        for rate, kernel in zip(config.rates, config.kernels, strict=True):
            upsampling = TransposedConv(width, width // 2, kernel, rate, config, rngs=rngs)
            self.ups.append(nnx.List([upsampling]))
            width //= 2
            for block_kernel in config.block_kernels:
                self.resblocks.append(AmpBlock(width, block_kernel, config, rngs=rngs))
        self.activation_post = Activation(width, config)
        self.conv_post = Conv(width, 1, _EDGE_KERNEL, config, use_bias=config.use_bias_at_final, rngs=rngs)

    def __call__(self, log_mel: Float[Array, "B frames bins"]) -> Float[Array, "B samples"]:
        """Turn log-mel frames into a wave of frames·hop samples, float32 within [-1, 1]."""
        x = self.conv_pre(log_mel)
        blocks = len(self.config.block_kernels)
        for stage, upsampling in enumerate(self.ups):
            x = upsampling[0](x)
            outputs = [block(x) for block in self.resblocks[stage * blocks : (stage + 1) * blocks]]
            x = functools.reduce(jnp.add, outputs) / blocks
        wave = self.conv_post(self.activation_post(x))[..., 0].astype(jnp.float32)
        return jnp.tanh(wave) if self.config.use_tanh_at_final else jnp.clip(wave, -1.0, 1.0)


class AmpBlock(nnx.Module):
    """Sequence of residual pairs of convolutions, one pair per dilation."""

    def __init__(self, width: int, kernel: int, config: BigVganConfig, *, rngs: nnx.Rngs):
        self.convs1 = nnx.List(
            [Conv(width, width, kernel, config, dilation=d, rngs=rngs) for d in config.dilations]
        )
        self.convs2 = nnx.List([Conv(width, width, kernel, config, rngs=rngs) for _ in config.dilations])
        self.activations = nnx.List([Activation(width, config) for _ in range(2 * len(config.dilations))])

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        for i, (first, second) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            x = x + second(self.activations[2 * i + 1](first(self.activations[2 * i](x))))
        return x


class Activation(nnx.Module):
    """SnakeBeta at twice the sample rate, between anti-aliased upsampling and downsampling."""

    def __init__(self, width: int, config: BigVganConfig):
        self.act = SnakeBeta(width)
        self.upsample = Filter()
        self.downsample = Lowpass()
        self.dtype = config.dtype

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x = x.astype(self.dtype)
        even, odd = upsampled(x, self.upsample.filter[...].astype(self.dtype))
        even, odd = self.act(even), self.act(odd)
        return downsampled(even, odd, self.downsample.lowpass.filter[...].astype(self.dtype))


class SnakeBeta(nnx.Module):
    """Activation x + sin²(x·e^α) / e^β per channel."""

    def __init__(self, width: int):
        self.alpha = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.beta = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        frequency = per_channel(jnp.exp(self.alpha[...]), x)
        magnitude = per_channel(1.0 / (jnp.exp(self.beta[...]) + _TINY), x)
        return x + magnitude * jnp.square(jnp.sin(x * frequency))


class Filter(nnx.Module):
    """Taps of the anti-aliasing filter, which published files store at every activation."""

    def __init__(self):
        self.filter = nnx.Param(jnp.asarray(anti_aliasing_filter()))


class Lowpass(nnx.Module):
    """Wrapper that published files have around the downsampling filter."""

    def __init__(self):
        self.lowpass = Filter()


class Conv(nnx.Module):
    """Convolution over time with bias and zero "same" padding."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        config: BigVganConfig,
        *,
        dilation: int = 1,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        scale = 1.0 / math.sqrt(kernel * inputs)
        self.weight = nnx.Param(
            scale * jax.random.normal(rngs.params(), (kernel, inputs, outputs), jnp.float32)
        )
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if use_bias else None
        self.dilation = dilation
        self.dtype = config.dtype

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.weight[...].astype(self.dtype),
            window_strides=(1,),
            padding="SAME",
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return y if self.bias is None else y + per_channel(self.bias[...], y)


class TransposedConv(nnx.Module):
    """Upsampling to exactly `rate` times the length, by one matrix product and an overlap-add."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, rate: int, config: BigVganConfig, *, rngs: nnx.Rngs
    ):
        scale = 1.0 / math.sqrt(inputs * kernel / rate)
        self.weight = nnx.Param(
            scale * jax.random.normal(rngs.params(), (inputs, kernel, outputs), jnp.float32)
        )
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.rate = rate
        self.dtype = config.dtype

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B longer O"]:
        batch, length, inputs = x.shape
        _, kernel, outputs = self.weight.shape
        overlap = kernel // self.rate
        matrix = self.weight[...].astype(self.dtype).reshape(inputs, kernel * outputs)
        spread = (x.reshape(-1, inputs).astype(self.dtype) @ matrix).reshape(
            batch, length, overlap, self.rate * outputs
        )
        summed = functools.reduce(
            jnp.add,
            (
                jnp.pad(spread[:, :, shift], ((0, 0), (shift, overlap - 1 - shift), (0, 0)))
                for shift in range(overlap)
            ),
        )
        cut = (kernel - self.rate) // 2
        whole = summed.reshape(batch, (length + overlap - 1) * self.rate, outputs)
        return whole[:, cut : cut + length * self.rate] + per_channel(self.bias[...], whole)


def upsampled(x: Array, taps: Array) -> tuple[Array, Array]:
    """Upsample x (B, T, D) to twice the rate, repeating its ends.

    Args:
      x: (B, T, D).
      taps: (12,) filter.

    Returns:
      Even and odd samples, each (B, T, D).
    """
    length, half = x.shape[1], _TAPS // 2
    padded = _materialised(jnp.pad(x, ((0, 0), (half // 2, half // 2), (0, 0)), mode="edge"))

    def phase(taps: Array, start: int) -> Array:
        terms = (taps[c] * padded[:, start + c : start + c + length] for c in range(half))
        return 2.0 * functools.reduce(jnp.add, terms)

    return phase(taps[::-2], 0), phase(taps[-2::-2], 1)


def downsampled(even: Array, odd: Array, taps: Array) -> Array:
    """Filter even and odd samples (B, T, D) and keep every second one, repeating the ends."""
    length = even.shape[1]
    even, odd = _materialised((even, odd))
    first, last = even[:, :1], odd[:, -1:]
    padded_even = _materialised(jnp.concatenate([first, first, even, last, last, last], axis=1))
    padded_odd = _materialised(jnp.concatenate([first, first, first, odd, last, last], axis=1))
    terms = (
        taps[2 * c + 1] * padded_even[:, c : c + length] + taps[2 * c] * padded_odd[:, c : c + length]
        for c in range(_TAPS // 2)
    )
    return functools.reduce(jnp.add, terms)


# Without this barrier, XLA fuses its input into the sum over taps and recomputes sines and edges per tap.
_materialised = jax.lax.optimization_barrier


@functools.cache
def anti_aliasing_filter() -> np.ndarray:
    """Return the (12,) taps: a sinc with cut-off 1/4 under a Kaiser window, normalised to sum to one."""
    cutoff, half_width = 0.25, 0.3
    attenuation = 2.285 * (_TAPS // 2 - 1) * math.pi * 4 * half_width + 7.95
    window = np.kaiser(_TAPS, 0.1102 * (attenuation - 8.7))
    times = np.arange(_TAPS) - (_TAPS - 1) / 2
    taps = 2 * cutoff * window * np.sinc(2 * cutoff * times)
    return (taps / taps.sum()).astype(np.float32)
