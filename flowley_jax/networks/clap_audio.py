"""HTSAT, the audio network of LAION-CLAP (Chen et al. 2022, arXiv 2202.00874), with its front end.

It is a Swin transformer (Liu et al. 2021, arXiv 2103.14030) on an image of log-mel frames. Attributes are
named as in the published file, so that the path of a weight is its name there. Grids are (B, rows, columns,
channels); linear weights are (in, out).
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowley_jax.common.librosa_loading import load_librosa
from flowley_jax.errors import FlowleyError
from flowley_jax.networks.layers import BatchNorm, LayerNorm, Linear, Mlp, PatchConvolution, attend
from flowley_jax.networks.spectra import decibels, mel_power, periodic_hann

SAMPLE_RATE = 48_000
# Length of every sound after repetition and padding.
SAMPLES = 10 * SAMPLE_RATE
_FFT, _HOP, _BINS = 1024, 480, 64
_LOWEST_HZ, _HIGHEST_HZ = 50, 14_000
# Shape of the published file's matrix from power spectra to mel bins.
MEL_SHAPE = (_FFT // 2 + 1, _BINS)
_IMAGE, _PATCH, _WINDOW = 256, 4, 8
_FRAMES = _IMAGE * _IMAGE // _BINS
_CUBIC = -0.75
LAYERS = 4
_FORBIDDEN = -100.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class HtsatConfig:
    """Sizes of the audio network.

    Attributes:
      width: channels of the first layer; each next layer has twice as many.
      depths, heads: blocks and attention heads of each layer.
    """

    width: int = 128
    depths: tuple[int, ...] = (2, 2, 12, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)

    def __post_init__(self):
        if len(self.depths) != LAYERS or len(self.heads) != LAYERS:
            raise FlowleyError(
                f"HTSAT: depths={self.depths} and heads={self.heads} must be of {LAYERS} layers"
            )
        if any(width % heads for width, heads in zip(self.widths, self.heads, strict=True)):
            raise FlowleyError(f"HTSAT: widths={self.widths} must be multiples of heads={self.heads}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each layer."""
        return tuple(self.width * 2**layer for layer in range(LAYERS))


class Htsat(nnx.Module):
    """Network from waves to one vector."""

    def __init__(self, config: HtsatConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        self.bn0 = BatchNorm(_BINS)
        self.patch_embed = Patches(config.width, rngs=rngs)
        self.layers = nnx.List([Layer(config, layer, rngs=rngs) for layer in range(LAYERS)])
        self.norm = LayerNorm(config.widths[-1])

    def __call__(self, waves: Float[Array, "B N"]) -> Float[Array, "B D"]:
        """Return the mean token of waves at 48 kHz, float32; see `fitted`."""
        image = folded(stretched(self.bn0(log_mel(fitted(waves)))))
        x = self.patch_embed(image[..., None].astype(self.dtype))
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).astype(jnp.float32).mean(axis=(1, 2))


class Patches(nnx.Module):
    """Linear map of every patch, and a norm."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.proj = PatchConvolution(_PATCH, _PATCH, 1, width, rngs=rngs)
        self.norm = LayerNorm(width)

    def __call__(self, image: Float[Array, "B H W 1"]) -> Float[Array, "B h w C"]:
        return self.norm(self.proj(image))


class Layer(nnx.Module):
    """Blocks on one grid. All layers but the last then merge every 2×2 tokens."""

    def __init__(self, config: HtsatConfig, layer: int, *, rngs: nnx.Rngs):
        side, width = _IMAGE // _PATCH // 2**layer, config.widths[layer]
        shifts = [
            _WINDOW // 2 if block % 2 and side > _WINDOW else 0 for block in range(config.depths[layer])
        ]
        self.blocks = nnx.List([Block(width, config.heads[layer], shift, rngs=rngs) for shift in shifts])
        self.downsample = Merging(width, rngs=rngs) if layer < LAYERS - 1 else None

    def __call__(self, x: Float[Array, "B S S C"]) -> Float[Array, "B s s D"]:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class Block(nnx.Module):
    """Attention in windows and a two-layer net, each applied to normalised input and added to it."""

    def __init__(self, width: int, heads: int, shift: int, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(width)
        self.attn = WindowAttention(width, heads, shift, rngs=rngs)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, 4 * width, rngs=rngs)

    def __call__(self, x: Float[Array, "B S S C"]) -> Float[Array, "B S S C"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class WindowAttention(nnx.Module):
    """Multi-head attention within windows of 8×8 tokens, with a bias for every offset.

    Args:
      width: channels.
      heads: attention heads.
      shift: tokens by which the grid is rolled back, so that windows of successive blocks overlap. Windows
        then hold parts of opposite edges, which do not attend to each other.
    """

    def __init__(self, width: int, heads: int, shift: int, *, rngs: nnx.Rngs):
        self.relative_position_bias_table = nnx.Param(jnp.zeros(((2 * _WINDOW - 1) ** 2, heads)))
        self.qkv = Linear(width, 3 * width, rngs=rngs)
        self.proj = Linear(width, width, rngs=rngs)
        self.heads, self.shift = heads, shift

    def __call__(self, x: Float[Array, "B S S C"]) -> Float[Array, "B S S C"]:
        side = x.shape[1]
        bias = self.relative_position_bias_table[...][_offsets()].transpose(2, 0, 1)[None, None]
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
            bias = bias + _edge_mask(side, self.shift)[None, :, None]
        query, key, value = jnp.split(self.qkv(_windows(x)), 3, axis=-1)
        x = _unwindowed(self.proj(attend(query, key, value, heads=self.heads, bias=bias)), side)
        return jnp.roll(x, (self.shift, self.shift), axis=(1, 2)) if self.shift else x


class Merging(nnx.Module):
    """Linear map of every 2×2 tokens to one."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * width)
        self.reduction = Linear(4 * width, 2 * width, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "B S S C"]) -> Float[Array, "B s s D"]:
        offsets = ((0, 0), (1, 0), (0, 1), (1, 1))
        tokens = [x[:, row::2, column::2] for row, column in offsets]
        return self.reduction(self.norm(jnp.concatenate(tokens, axis=-1)))


def fitted(waves: Float[Array, "B N"]) -> Float[Array, "B samples"]:
    """Return waves of `SAMPLES` samples: repeated as often as they fit, then zeros.

    Raises:
      FlowleyError: the waves are longer, or have no samples.
    """
    length = waves.shape[1]
    if not 0 < length <= SAMPLES:
        raise FlowleyError(
            f"CLAP: sounds of {length} samples must have 1 to {SAMPLES} ({SAMPLE_RATE} Hz); cut them before"
        )
    repeated = jnp.tile(waves, (1, SAMPLES // length))
    return jnp.pad(repeated, ((0, 0), (0, SAMPLES - repeated.shape[1])))


def log_mel(waves: Float[Array, "B N"]) -> Float[Array, "B T bins"]:
    """Return the log-mel frames of waves in decibels, T = 1 + N // 480."""
    return decibels(mel_power(waves, periodic_hann(_FFT), _HOP, _mel_matrix()))


def stretched(frames: Float[Array, "B T bins"]) -> Float[Array, "B frames bins"]:
    """Return 1024 frames by bicubic interpolation; the first and the last frame stay."""
    taps, weights = _cubic_taps(frames.shape[1])
    # Not a matrix product, which accelerators would round.
    return jnp.sum(frames[:, taps] * jnp.asarray(weights)[None, ..., None], axis=2)


def folded(frames: Float[Array, "B frames bins"]) -> Float[Array, "B H W"]:
    """Return a square image: pieces of the sound under each other, each (bins, time)."""
    pieces = frames.reshape(len(frames), -1, _IMAGE, _BINS)
    return pieces.mT.reshape(len(frames), _IMAGE, _IMAGE)


def _windows(x: Any) -> Any:
    """Return the tokens of a grid (B, S, S, C) window by window, (B, windows, 64, C); both are row by row."""
    batch, side, _, width = x.shape
    count = side // _WINDOW
    cells = x.reshape(batch, count, _WINDOW, count, _WINDOW, width).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(batch, count**2, _WINDOW**2, width)


def _unwindowed(windows: Float[Array, "B W n C"], side: int) -> Float[Array, "B S S C"]:
    batch, width, count = len(windows), windows.shape[-1], side // _WINDOW
    cells = windows.reshape(batch, count, count, _WINDOW, _WINDOW, width).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(batch, side, side, width)


@functools.cache
def _mel_matrix() -> np.ndarray:
    """Return the weights of the mel bins, (513, 64)."""
    return (
        load_librosa()
        .filters.mel(sr=SAMPLE_RATE, n_fft=_FFT, n_mels=_BINS, fmin=_LOWEST_HZ, fmax=_HIGHEST_HZ)
        .T
    )


@functools.cache
def _cubic_taps(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the four frames of each interpolated frame and their weights, each (1024, 4)."""
    # In float32, as in PyTorch; float64 moves the image by up to 1e-4.
    position = np.float32((count - 1) / (_FRAMES - 1)) * np.arange(_FRAMES, dtype=np.float32)
    first = np.floor(position)
    part = position - first
    taps = np.clip(first.astype(np.int32)[:, None] + np.arange(-1, 3), 0, count - 1)
    distances = np.abs(part[:, None] - np.arange(-1, 3, dtype=np.float32))
    near = ((_CUBIC + 2) * distances - (_CUBIC + 3)) * distances**2 + 1
    far = ((_CUBIC * distances - 5 * _CUBIC) * distances + 8 * _CUBIC) * distances - 4 * _CUBIC
    return taps, np.where(distances <= 1, near, far).astype(np.float32)


@functools.cache
def _offsets() -> np.ndarray:
    """Return the index of the offset between every two tokens of a window, (64, 64)."""
    row, column = np.divmod(np.arange(_WINDOW**2), _WINDOW)
    rows, columns = (x[:, None] - x[None] + _WINDOW - 1 for x in (row, column))
    return rows * (2 * _WINDOW - 1) + columns


@functools.cache
def _edge_mask(side: int, shift: int) -> np.ndarray:
    """Return what is added to the scores in each window of a rolled grid, (windows, 64, 64)."""
    region = np.searchsorted((side - _WINDOW, side - shift), np.arange(side), side="right")
    regions = _windows((3 * region[:, None] + region[None])[None, ..., None])[0, ..., 0]
    return np.where(regions[:, :, None] == regions[:, None], 0.0, _FORBIDDEN).astype(np.float32)
