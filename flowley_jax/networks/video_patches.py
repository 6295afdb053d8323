"""Patches of videos: the first layer of transformers that see frames."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowley_jax.networks.layers import linear


class VideoPatches(nnx.Module):
    """Linear map of every patch of a few frames; the patches do not overlap.

    Args:
      frames: frames of a patch.
      size: height and width of a patch in pixels.
      width: channels of a token.
      use_bias: whether a bias is added.
    """

    def __init__(self, frames: int, size: int, width: int, *, use_bias: bool = True, rngs: nnx.Rngs):
        init = jax.nn.initializers.lecun_normal()
        self.weight = nnx.Param(init(rngs.params(), (frames, size, size, 3, width), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32)) if use_bias else None

    def __call__(self, video: Float[Array, "B T H W 3"]) -> Float[Array, "B N D"]:
        """Return tokens in the order of time, row and column."""
        frames, size = self.weight.shape[:2]
        batch, times, rows, columns = (
            video.shape[0],
            *(length // step for length, step in zip(video.shape[1:4], (frames, size, size), strict=True)),
        )
        cells = video.reshape(batch, times, frames, rows, size, columns, size, 3)
        cells = cells.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, times * rows * columns, -1)
        matrix = self.weight[...].reshape(-1, self.weight.shape[-1])
        return linear(cells, matrix, None if self.bias is None else self.bias[...])
