"""The audio network of Synchformer: an audio spectrogram transformer (Gong et al. 2021, arXiv 2104.01778).

Its front end treats every segment by itself.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.networks.layers import LayerNorm, Linear, PatchConvolution, attend
from flowley_jax.networks.mel_filters import triangles
from flowley_jax.networks.spectra import mel_power, periodic_hann
from flowley_jax.networks.synchformer_aggregation import Aggregation
from flowley_jax.networks.synchformer_config import AUDIO_TOKENS, SAMPLE_RATE, SynchformerConfig

_FFT, _WINDOW, _HOP, _BINS = 1024, 400, 160, 128
_OFFSET = 1e-6
_MEAN, _SCALE = -4.2677393, 2 * 4.5689974
_PATCH_SIZE, _PATCH_STEP = 16, 10
# Patches along the frequency axis.
_ROWS = (_BINS - _PATCH_SIZE) // _PATCH_STEP + 1
_EPSILON = 1e-12


class AudioNetwork(nnx.Module):
    """Network from segments of sound to one token for every tenth of a second."""

    def __init__(self, config: SynchformerConfig, *, rngs: nnx.Rngs):
        self.ast = SpectrogramTransformer(config, rngs=rngs)
        self.freq_attn_agg = Aggregation(config, rngs=rngs)
        self.dtype = config.dtype

    def __call__(self, segments: Float[Array, "B 10240"]) -> Float[Array, "B 6 D"]:
        x = self.ast(log_mel(segments).astype(self.dtype))
        return self.freq_attn_agg(x.reshape(len(x), _ROWS, AUDIO_TOKENS, -1).swapaxes(1, 2))


class SpectrogramTransformer(nnx.Module):
    """Transformer on the patches of a spectrogram."""

    def __init__(self, config: SynchformerConfig, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.layers)])
        self.encoder = nnx.Dict({"layer": layers})
        self.layernorm = LayerNorm(config.width, epsilon=_EPSILON)

    def __call__(self, images: Float[Array, "B 128 66"]) -> Float[Array, "B 72 D"]:
        """Return the tokens of the patches, from low to high frequencies."""
        x = self.embeddings(images)
        for layer in self.encoder["layer"]:
            x = layer(x)
        return self.layernorm(x)[:, 2:]


class Embeddings(nnx.Module):
    """Patches with their positions, behind the tokens of class and distillation."""

    def __init__(self, config: SynchformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.cls_token = nnx.Param(jnp.zeros((1, 1, width), jnp.float32))
        self.distillation_token = nnx.Param(jnp.zeros((1, 1, width), jnp.float32))
        self.position_embeddings = nnx.Param(jnp.zeros((1, 2 + _ROWS * AUDIO_TOKENS, width), jnp.float32))
        projection = PatchConvolution(_PATCH_SIZE, _PATCH_STEP, 1, width, rngs=rngs)
        self.patch_embeddings = nnx.Dict({"projection": projection})

    def __call__(self, images: Float[Array, "B 128 66"]) -> Float[Array, "B 74 D"]:
        patches = self.patch_embeddings["projection"](images[..., None])
        batch, width = len(patches), patches.shape[-1]
        first = jnp.concatenate([self.cls_token[...], self.distillation_token[...]], axis=1)
        first = jnp.broadcast_to(first.astype(patches.dtype), (batch, 2, width))
        tokens = jnp.concatenate([first, patches.reshape(batch, -1, width)], axis=1)
        return tokens + self.position_embeddings[...].astype(tokens.dtype)


class Layer(nnx.Module):
    """Attention and a two-layer net, each applied to normalised input and added to it."""

    def __init__(self, config: SynchformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        maps = {name: Linear(width, width, rngs=rngs) for name in ("query", "key", "value")}
        output = nnx.Dict({"dense": Linear(width, width, rngs=rngs)})
        self.attention: Any = nnx.Dict({"attention": nnx.Dict(maps), "output": output})
        self.intermediate = nnx.Dict({"dense": Linear(width, config.mlp_width, rngs=rngs)})
        self.output = nnx.Dict({"dense": Linear(config.mlp_width, width, rngs=rngs)})
        self.layernorm_before = LayerNorm(width, epsilon=_EPSILON)
        self.layernorm_after = LayerNorm(width, epsilon=_EPSILON)
        self.heads = config.heads

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        x = x + self._attention(self.layernorm_before(x))
        hidden = self.intermediate["dense"](self.layernorm_after(x))
        return x + self.output["dense"](jax.nn.gelu(hidden, approximate=False))

    def _attention(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        maps = self.attention["attention"]
        attended = attend(maps["query"](x), maps["key"](x), maps["value"](x), heads=self.heads)
        return self.attention["output"]["dense"](attended)


def log_mel(segments: Float[Array, "B N"]) -> Float[Array, "B bins frames"]:
    """Return the normalised log-mel images of segments, with frames = 2 + N // 160.

    The last frame is 0 before it is normalised, as in the published program.
    """
    # The window is shorter than the frame of the transform, and in its middle.
    window = np.pad(periodic_hann(_WINDOW), (_FFT - _WINDOW) // 2)
    mel = mel_power(segments, window, _HOP, _mel_matrix())
    image = jnp.pad(jnp.log(mel + _OFFSET), ((0, 0), (0, 1), (0, 0))).swapaxes(1, 2)
    return (image - _MEAN) / _SCALE


@functools.cache
def _mel_matrix() -> np.ndarray:
    """Return triangles over frequencies, with edges at even steps of 2595·log10(1 + f/700), (513, 128)."""
    highest = SAMPLE_RATE / 2
    edges = np.linspace(0.0, 2595.0 * np.log10(1.0 + highest / 700.0), _BINS + 2)
    hertz = 700.0 * (10.0 ** (edges / 2595.0) - 1.0)
    return triangles(np.linspace(0.0, highest, _FFT // 2 + 1), hertz)
