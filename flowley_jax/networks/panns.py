"""Cnn14, the audio tagger of PANNs at 16 kHz (Kong et al. 2020, arXiv 1912.10211), with its front end.

Attributes are named as in the published file, so that the path of a weight is its name there. Kernels are
(time, bins, in, out); linear weights are (in, out).
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.common.librosa_loading import load_librosa
from flowley_jax.errors import FlowleyError
from flowley_jax.networks.layers import BatchNorm, Convolution, Linear
from flowley_jax.networks.spectra import decibels, mel_power, periodic_hann

SAMPLE_RATE = 16_000
_WINDOW, _HOP, _BINS, _LOWEST_HZ = 512, 160, 64, 50
# Shape of the published file's matrix from power spectra to mel bins.
MEL_SHAPE = (_WINDOW // 2 + 1, _BINS)
BLOCKS = 6
# Every block but the last halves the number of frames, so that shorter sounds would end with none.
LEAST_SAMPLES = 2 ** (BLOCKS - 1) * _HOP - _HOP


@dataclasses.dataclass(frozen=True, kw_only=True)
class PannsConfig:
    """Sizes of the tagger.

    Attributes:
      widths: channels of each block.
      classes: number of classes of AudioSet.
      dtype: compute type of the network; the front end computes in float32.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    classes: int = 527
    dtype: str = "float32"

    def __post_init__(self):
        if len(self.widths) != BLOCKS:
            raise FlowleyError(f"PANNs: widths={self.widths} must be of {BLOCKS} blocks")


class ConvolutionBlock(nnx.Module):
    """Two convolutions, each followed by normalisation and ReLU."""

    def __init__(self, before: int, after: int, *, rngs: nnx.Rngs):
        self.conv1 = Convolution(before, after, use_bias=False, rngs=rngs)
        self.conv2 = Convolution(after, after, use_bias=False, rngs=rngs)
        self.bn1, self.bn2 = BatchNorm(after), BatchNorm(after)

    def __call__(self, x: Float[Array, "B T bins C"]) -> Float[Array, "B T bins D"]:
        return nnx.relu(self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x))))))


class Panns(nnx.Module):
    """Tagger of the 527 classes of AudioSet."""

    def __init__(self, config: PannsConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.bn0 = BatchNorm(_BINS)
        for index, (before, after) in enumerate(zip((1, *config.widths), config.widths, strict=False)):
            setattr(self, f"conv_block{index + 1}", ConvolutionBlock(before, after, rngs=rngs))
        self.fc1 = Linear(config.widths[-1], config.widths[-1], rngs=rngs)
        self.fc_audioset = Linear(config.widths[-1], config.classes, rngs=rngs)

    def __call__(self, waves: Float[Array, "B N"]) -> tuple[Float[Array, "B dim"], Float[Array, "B classes"]]:
        """Return embeddings and logits of waves at 16 kHz, at least `LEAST_SAMPLES` long."""
        x = self.bn0(log_mel(waves))[..., None].astype(self.config.dtype)
        for index in range(1, BLOCKS + 1):
            x = getattr(self, f"conv_block{index}")(x)
            if index < BLOCKS:
                x = _halved(x)
        frames = x.mean(axis=2)
        embedding = nnx.relu(self.fc1(frames.max(axis=1) + frames.mean(axis=1)))
        logits = self.fc_audioset(embedding)
        return embedding.astype(jnp.float32), logits.astype(jnp.float32)


def log_mel(waves: Float[Array, "B N"]) -> Float[Array, "B T bins"]:
    """Return the log-mel frames of waves in decibels, T = 1 + N // 160."""
    return decibels(mel_power(waves, periodic_hann(_WINDOW), _HOP, _mel_matrix()))


def _halved(x: Float[Array, "B T bins C"]) -> Float[Array, "B T bins C"]:
    """Average 2×2 frames and bins; odd ends are dropped."""
    return nnx.avg_pool(x, (2, 2), strides=(2, 2))


@functools.cache
def _mel_matrix() -> np.ndarray:
    """Return the weights of the mel bins, (257, 64)."""
    return (
        load_librosa()
        .filters.mel(sr=SAMPLE_RATE, n_fft=_WINDOW, n_mels=_BINS, fmin=_LOWEST_HZ, fmax=SAMPLE_RATE / 2)
        .T
    )
