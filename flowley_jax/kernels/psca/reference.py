"""PSCA in plain XLA: the reference for the other implementations, and the hard cut in bands."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flowley_jax.kernels.psca.mask import SoftMask, select_value

# Audio rows that share one run of frames in the banded form.
BAND_ROWS = 64


def attend(
    q: Float[Array, "B Ta H d"],
    k: Float[Array, "B Tv H d"],
    v: Float[Array, "B Tv H d"],
    *,
    mask: SoftMask,
    fade_scale: Float[Array, ""],
    scale: float,
    interpret: Any = False,
) -> Float[Array, "B Ta H d"]:
    """Compute PSCA (see `psca`) on any platform; `interpret` is ignored."""
    del interpret
    if mask.hard_cut:
        return _banded(q, k, v, mask=mask, fade_scale=fade_scale, scale=scale)
    # Heads first: XLA:CPU multiplies the other layout at a quarter of the speed.
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32) * scale
    if mask.enabled:
        scores = scores + mask.log_matrix(fade_scale, q.shape[2], k.shape[2])[None, None]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.moveaxis(jnp.einsum("bhts,bhsd->bhtd", weights, v), 1, 2)


def _banded(
    q: Float[Array, "B Ta H d"],
    k: Float[Array, "B Tv H d"],
    v: Float[Array, "B Tv H d"],
    *,
    mask: SoftMask,
    fade_scale: Float[Array, ""],
    scale: float,
) -> Float[Array, "B Ta H d"]:
    """Compute the hard cut: each block of audio rows meets only the run of frames that its windows cover."""
    batch, audio_length, heads, dim = q.shape
    rows = min(BAND_ROWS, audio_length)
    blocks = -(-audio_length // rows)
    padding = blocks * rows - audio_length
    frames = np.pad(mask.aligned_frames(audio_length, k.shape[1]), (0, padding), mode="edge")
    frames = frames.reshape(blocks, rows)
    indices = _frames_in_reach(frames, mask.reach, k.shape[1])
    # Heads first, as above.
    q = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0)))
    q = q.reshape(batch, blocks, rows, heads, dim).transpose(0, 1, 3, 2, 4)
    k, v = (x[:, indices].transpose(0, 1, 3, 2, 4) for x in (k, v))
    scores = jnp.einsum("bnhtd,bnhsd->bnhts", q, k, preferred_element_type=jnp.float32) * scale
    distance = jnp.abs(jnp.asarray(indices[:, None, :] - frames[:, :, None]))
    log_mask = select_value(mask.log_values(fade_scale), distance - mask.window)
    scores = scores + log_mask[None, :, None]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bnhts,bnhsd->bnthd", weights, v)
    return out.reshape(batch, blocks * rows, heads, dim)[:, :audio_length]


def _frames_in_reach(
    frames: Int[np.ndarray, "blocks rows"], reach: int, video_length: int
) -> Int[np.ndarray, "blocks S"]:
    """Return the indices of a run of frames, of equal length S, that covers all windows of each block."""
    low = np.maximum(frames.min(axis=1) - reach, 0)
    high = np.minimum(frames.max(axis=1) + reach, video_length - 1)
    length = int((high - low).max()) + 1
    start = np.minimum(low, video_length - length)
    return start[:, None] + np.arange(length)[None, :]
