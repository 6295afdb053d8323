"""VGGish (Hershey et al. 2017, arXiv 1609.09430), with its front end, as the field's FAD uses it.

The last ReLU, the principal components and the 8-bit rounding of the original are left out. Attributes are
named as in the published file, so that the path of a weight is its name there. Kernels are (time, bins, in,
out).
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.errors import FlowleyError
from flowley_jax.networks.layers import Convolution, Linear

SAMPLE_RATE = 16_000
_WINDOW, _HOP, _FFT, _BINS = 400, 160, 512, 64
_LOWEST_HZ, _HIGHEST_HZ = 125.0, 7500.0
_OFFSET = 0.01
# Frames of one example, and its samples.
EXAMPLE = 96
LEAST_SAMPLES = _WINDOW + (EXAMPLE - 1) * _HOP
# Layers of the published file with a convolution, and those after which frames and bins are halved.
CONVOLUTIONS = (0, 3, 6, 8, 11, 13)
_HALVED_AFTER = (0, 3, 8, 13)
LINEARS = (0, 2, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VggishConfig:
    """Sizes of the network.

    Attributes:
      widths: channels of each convolution.
      linear_widths: width of each linear layer; the last one is that of the embedding.
      dtype: compute type of the network.
    """

    widths: tuple[int, ...] = (64, 128, 256, 256, 512, 512)
    linear_widths: tuple[int, ...] = (4096, 4096, 128)
    dtype: str = "float32"

    def __post_init__(self):
        if len(self.widths) != len(CONVOLUTIONS) or len(self.linear_widths) != len(LINEARS):
            raise FlowleyError(
                f"VGGish: widths={self.widths} must be {len(CONVOLUTIONS)} numbers, and "
                f"linear_widths={self.linear_widths} {len(LINEARS)}"
            )

    @property
    def flat_width(self) -> int:
        """Width of an example after the convolutions."""
        factor = 2 ** len(_HALVED_AFTER)
        return EXAMPLE // factor * (_BINS // factor) * self.widths[-1]


class Vggish(nnx.Module):
    """Network from examples of about a second to embeddings."""

    def __init__(self, config: VggishConfig, *, rngs: nnx.Rngs):
        self.config = config
        sizes = zip(CONVOLUTIONS, (1, *config.widths), config.widths, strict=False)
        self.features = nnx.Dict(
            {str(index): Convolution(before, after, rngs=rngs) for index, before, after in sizes}
        )
        sizes = zip(LINEARS, (config.flat_width, *config.linear_widths), config.linear_widths, strict=False)
        self.embeddings = nnx.Dict(
            {str(index): Linear(before, after, rngs=rngs) for index, before, after in sizes}
        )

    def __call__(self, examples: Float[Array, "B T bins"]) -> Float[Array, "B dim"]:
        """Return the embeddings of log-mel examples of `EXAMPLE` frames; see `log_mel_examples`."""
        x = examples[..., None].astype(self.config.dtype)
        for index in CONVOLUTIONS:
            x = nnx.relu(self.features[str(index)](x))
            if index in _HALVED_AFTER:
                x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        for index in LINEARS:
            x = self.embeddings[str(index)](x)
            if index != LINEARS[-1]:
                x = nnx.relu(x)
        return x.astype(jnp.float32)


def log_mel_examples(wave: np.ndarray) -> np.ndarray:
    """Return the examples of a wave (N,) at 16 kHz, (n, 96, 64) float32; the rest of the wave is dropped.

    It is computed in float64, as by the published program.
    """
    frames = 1 + (len(wave) - _WINDOW) // _HOP
    count = frames // EXAMPLE
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(wave, np.float64), _WINDOW)[::_HOP]
    magnitude = np.abs(np.fft.rfft(windows[: count * EXAMPLE] * _hann(), _FFT))
    log_mel = np.log(magnitude @ _mel_matrix() + _OFFSET)
    return log_mel.reshape(count, EXAMPLE, _BINS).astype(np.float32)


@functools.cache
def _hann() -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(_WINDOW) / _WINDOW)


@functools.cache
def _mel_matrix() -> np.ndarray:
    """Return triangles over mel frequencies 1127·ln(1 + f/700), (257, 64) float64."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    edges = np.linspace(mel(_LOWEST_HZ), mel(_HIGHEST_HZ), _BINS + 2)
    bins = mel(np.linspace(0.0, SAMPLE_RATE / 2, _FFT // 2 + 1))[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    matrix = np.maximum(0.0, np.minimum(rising, falling))
    matrix[0] = 0.0
    return matrix
