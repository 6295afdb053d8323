"""PSCA in plain XLA: the definition that the kernels are judged against, and the hard cut in bands."""

import jax
import jax.numpy as jnp
import numpy as np

from flowley_jax.kernels.psca.mask import Window, aligned_frames, log_mask

# Audio rows that share one run of frames in the banded form.
BAND_ROWS = 64


def attend(shape: Window, scale: float, fade_scale, q, k, v):
    """What `psca` returns, for q (B, Ta, H, d) and k, v (B, Tv, H, d)."""
    if shape.hard_cut:
        return _banded(shape, scale, fade_scale, q, k, v)
    # Heads first: XLA:CPU multiplies the other layout at a quarter of the speed.
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32) * scale
    if shape.window >= 0:
        scores = scores + log_mask_of(shape, fade_scale, q.shape[2], k.shape[2])[None, None]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.moveaxis(jnp.einsum("bhts,bhsd->bhtd", weights, v), 1, 2)


def log_mask_of(shape: Window, fade_scale, audio_length: int, video_length: int):
    """log(M + ε), (Ta, Tv), for a window that is not off."""
    frames = aligned_frames(audio_length, video_length, video_fps=shape.video_fps, audio_fps=shape.audio_fps)
    distance = jnp.abs(jnp.arange(video_length)[None, :] - jnp.asarray(frames)[:, None])
    return _log_mask(shape, fade_scale, distance)


def _log_mask(shape: Window, fade_scale, distance):
    return log_mask(list(shape.log_values(fade_scale)), distance - shape.window)


def _banded(shape: Window, scale: float, fade_scale, q, k, v):
    """The hard cut: every block of audio rows meets only the run of frames that its windows cover."""
    batch, audio_length, heads, dim = q.shape
    frames = aligned_frames(audio_length, k.shape[1], video_fps=shape.video_fps, audio_fps=shape.audio_fps)
    rows = min(BAND_ROWS, audio_length)
    blocks = -(-audio_length // rows)
    missing = blocks * rows - audio_length
    frames = np.pad(frames, (0, missing), mode="edge").reshape(blocks, rows)
    indices = _runs(frames, shape.window + shape.fade_range, k.shape[1])
    # Heads first, as above.
    q = jnp.pad(q, ((0, 0), (0, missing), (0, 0), (0, 0)))
    q = q.reshape(batch, blocks, rows, heads, dim).transpose(0, 1, 3, 2, 4)
    k, v = (x[:, indices].transpose(0, 1, 3, 2, 4) for x in (k, v))
    scores = jnp.einsum("bnhtd,bnhsd->bnhts", q, k, preferred_element_type=jnp.float32) * scale
    distance = jnp.abs(jnp.asarray(indices[:, None, :] - frames[:, :, None]))
    scores = scores + _log_mask(shape, fade_scale, distance)[None, :, None]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bnhts,bnhsd->bnthd", weights, v)
    return out.reshape(batch, blocks * rows, heads, dim)[:, :audio_length]


def _runs(frames: np.ndarray, reach: int, video_length: int) -> np.ndarray:
    """For each block of aligned frames (blocks, rows), the indices of all frames in reach, (blocks, S)."""
    low = np.maximum(frames.min(axis=1) - reach, 0)
    high = np.minimum(frames.max(axis=1) + reach, video_length - 1)
    length = int((high - low).max()) + 1
    start = np.minimum(low, video_length - length)
    return start[:, None] + np.arange(length)[None, :]
