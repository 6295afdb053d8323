"""PaSST, an audio tagger that is a transformer (Koutini et al. 2021, arXiv 2110.05069), with its front end.

Attributes are named as in the published file, so that the path of a weight is its name there. Grids are
(bins, time), and weights of positions have their channels last; linear weights are (in, out).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.errors import FlowleyError
from flowley_jax.networks.layers import LayerNorm, Linear, Mlp, PatchConvolution, attend
from flowley_jax.networks.mel_filters import triangles
from flowley_jax.networks.spectra import mel_power

SAMPLE_RATE = 32_000
# Length to which published programs pad every sound with zeros, or cut it; longer ones have no positions.
SAMPLES = 10 * SAMPLE_RATE
_PREEMPHASIS = 0.97
_FFT, _WINDOW, _HOP, _BINS = 1024, 800, 320, 128
_HIGHEST_HZ = 15_000.0
_SMALLEST = 1e-5
_OFFSET, _SCALE = 4.5, 5.0
_PATCH, _STRIDE = 16, 10
# Shortest sound of which one patch can be cut.
LEAST_SAMPLES = (_PATCH - 1) * _HOP + 1
_ROWS = (_BINS - _PATCH) // _STRIDE + 1
_COLUMNS = (SAMPLES // _HOP - _PATCH) // _STRIDE + 1
_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class PasstConfig:
    """Sizes of the tagger.

    Attributes:
      width, layers, heads: channels, blocks and attention heads of the transformer.
      mlp_width: hidden channels of a block's feed-forward net.
      classes: number of classes of AudioSet.
      dtype: compute type of the network; the front end computes in float32.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    classes: int = 527
    dtype: str = "float32"

    def __post_init__(self):
        if self.width % self.heads:
            raise FlowleyError(f"PaSST: width {self.width} must be a multiple of {self.heads} heads")


class Passt(nnx.Module):
    """Tagger of the 527 classes of AudioSet."""

    def __init__(self, config: PasstConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.width

        def positions(*shape: int) -> nnx.Param:
            init = jax.nn.initializers.normal(0.02)
            return nnx.Param(init(rngs.params(), (*shape, width), jnp.float32))

        self.patch_embed = Patches(width, rngs=rngs)
        self.freq_new_pos_embed, self.time_new_pos_embed = positions(1, _ROWS, 1), positions(1, 1, _COLUMNS)
        self.cls_token, self.dist_token = positions(1, 1), positions(1, 1)
        self.new_pos_embed = positions(1, 2)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.norm = LayerNorm(width, epsilon=_EPSILON)
        self.head = nnx.Dict({"0": LayerNorm(width), "1": Linear(width, config.classes, rngs=rngs)})

    def __call__(self, waves: Float[Array, "B N"]) -> tuple[Float[Array, "B classes"], Float[Array, "B D"]]:
        """Return logits and features of waves at 32 kHz, float32.

        Args:
          waves: sounds of `LEAST_SAMPLES` to `SAMPLES` samples.

        Raises:
          FlowleyError: the waves are shorter or longer.
        """
        x = self.tokens(log_mel(waves))
        for block in self.blocks:
            x = block(x)
        features = self.norm(x[:, :2]).mean(axis=1)
        logits = self.head["1"](self.head["0"](features))
        return logits.astype(jnp.float32), features.astype(jnp.float32)

    def tokens(self, frames: Float[Array, "B T bins"]) -> Float[Array, "B M D"]:
        """Return the two global tokens, then those of the patches, bin by bin."""
        dtype = self.config.dtype
        grid = self.patch_embed.proj(frames.mT[..., None].astype(dtype))
        times = self.time_new_pos_embed[...][:, :, : grid.shape[2]]
        grid += times.astype(dtype) + self.freq_new_pos_embed[...].astype(dtype)
        whole = jnp.concatenate([self.cls_token[...], self.dist_token[...]], axis=1) + self.new_pos_embed[...]
        patches = grid.reshape(len(grid), -1, grid.shape[-1])
        first = jnp.broadcast_to(whole.astype(dtype), (len(grid), *whole.shape[1:]))
        return jnp.concatenate([first, patches], axis=1)


class Patches(nnx.Module):
    """Linear map of overlapping patches."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.proj = PatchConvolution(_PATCH, _STRIDE, 1, width, rngs=rngs)


class Block(nnx.Module):
    """Attention and a two-layer net, each applied to normalised input and added to it."""

    def __init__(self, config: PasstConfig, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config.width, epsilon=_EPSILON)
        self.attn = Attention(config.width, config.heads, rngs=rngs)
        self.norm2 = LayerNorm(config.width, epsilon=_EPSILON)
        self.mlp = Mlp(config.width, config.mlp_width, rngs=rngs)

    def __call__(self, x: Float[Array, "B M D"]) -> Float[Array, "B M D"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nnx.Module):
    """Multi-head attention between all tokens."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.qkv = Linear(width, 3 * width, rngs=rngs)
        self.proj = Linear(width, width, rngs=rngs)
        self.heads = heads

    def __call__(self, x: Float[Array, "B M D"]) -> Float[Array, "B M D"]:
        return self.proj(attend(*jnp.split(self.qkv(x), 3, axis=-1), heads=self.heads))


def log_mel(waves: Float[Array, "B N"]) -> Float[Array, "B T bins"]:
    """Return the scaled log-mel frames of waves, T = 1 + (N − 1) // 320.

    Raises:
      FlowleyError: the waves are shorter than `LEAST_SAMPLES`, or longer than `SAMPLES`.
    """
    length = waves.shape[1]
    if not LEAST_SAMPLES <= length <= SAMPLES:
        raise FlowleyError(
            f"PaSST: sounds of {length} samples must have {LEAST_SAMPLES} to {SAMPLES} ({SAMPLE_RATE} Hz)"
        )
    emphasised = waves[:, 1:] - _PREEMPHASIS * waves[:, :-1]
    power = mel_power(emphasised, _window(), _HOP, _mel_matrix())
    return (jnp.log(power + _SMALLEST) + _OFFSET) / _SCALE


@functools.cache
def _window() -> np.ndarray:
    """Return a symmetric Hann window with zeros on both sides, (1024,)."""
    return np.pad(np.hanning(_WINDOW), (_FFT - _WINDOW) // 2)


@functools.cache
def _mel_matrix() -> np.ndarray:
    """Return triangles over mel frequencies 1127·ln(1 + f/700), (513, 128); the last row is 0."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    edges = np.linspace(0.0, mel(_HIGHEST_HZ), _BINS + 2)
    frequencies = mel(np.arange(_FFT // 2) * SAMPLE_RATE / _FFT)
    return np.pad(triangles(frequencies, edges), ((0, 1), (0, 0))).astype(np.float32)
