"""Bodies of the three PSCA kernels for TPU.

A grid step holds one tile of audio rows, one tile of video frames and all heads of both, in the layout
(rows, H·d) in which the projections leave them: nothing is transposed in memory. The mask is the same for
all heads and batch items; a step computes it once, from the aligned frame of each row and the table of the
mask's values.

Grids are (batch, outer tile, step), where step counts the inner tiles that the outer tile needs. Refs have
these shapes, with R rows of audio and S frames of video in a tile:

    first_ref, last_ref   (outer tiles,) int32, in scalar memory: the run of inner tiles
    table_ref             (1, δ + 2) float32: log(M + ε) by distance, see `SoftMask.log_values`
    frames_ref            (1, R) int32: aligned frame of each audio row
    q_ref, out_ref, …     (R, H·d)
    k_ref, v_ref, …       (S, H·d)
    lse_ref               (R, H) float32: log of the softmax's denominator
    *_scr                 float32 scratch that lives from the first step of an outer tile to its last
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from flowley_jax.kernels.psca.mask import select_value
from flowley_jax.kernels.psca.tiling import Tiling

# A Pallas reference to a block of memory, whose type Pallas does not export.
Ref = Any
# Score of a masked frame: finite, so that the difference of two of them is too.
MASK_VALUE = -0.7 * float(np.finfo(np.float32).max)

# Contracted dimensions of the three kinds of matrix product.
_A_BT = ((1,), (1,))
_A_B = ((1,), (0,))
_AT_B = ((0,), (0,))


def forward_kernel(
    tiling: Tiling, steps: int,
    first_ref: Ref, last_ref: Ref, table_ref: Ref, frames_ref: Ref, q_ref: Ref, k_ref: Ref, v_ref: Ref,
    out_ref: Ref, lse_ref: Ref,
    m_scr: Ref, l_scr: Ref, acc_scr: Ref,
) -> None:  # fmt: skip
    """Attend from one audio tile to its video tiles by an online softmax.

    Scratch: m_scr (R, H), the running maximum; l_scr (R, H), the running sum of exponentials; acc_scr
    (R, H·d), the unnormalised output. Outputs: out_ref (R, H·d); lse_ref (R, H).
    """
    video_tile, step, needed = _inner_tile(first_ref, last_ref)

    @pl.when(step == 0)
    def _():
        m_scr[...] = jnp.full_like(m_scr, MASK_VALUE)
        l_scr[...] = jnp.zeros_like(l_scr)
        acc_scr[...] = jnp.zeros_like(acc_scr)

    @pl.when(needed)
    def _():
        log_mask = _log_mask(tiling, table_ref, frames_ref, video_tile)
        k, v = _load_video(tiling, k_ref, video_tile), _load_video(tiling, v_ref, video_tile)
        for column, lanes in _heads(tiling):
            s = _dot(q_ref[:, lanes], k[:, lanes], _A_BT) * tiling.scale + log_mask
            m_previous = m_scr[:, column]
            m = jnp.maximum(m_previous, jnp.max(s, axis=-1, keepdims=True))
            alpha, p = jnp.exp(m_previous - m), jnp.exp(s - m)
            m_scr[:, column] = m
            l_scr[:, column] = l_scr[:, column] * alpha + jnp.sum(p, axis=-1, keepdims=True)
            acc_scr[:, lanes] = acc_scr[:, lanes] * alpha + _dot(p.astype(v.dtype), v[:, lanes], _A_B)

    @pl.when(step == steps - 1)
    def _():
        for column, lanes in _heads(tiling):
            out_ref[:, lanes] = (acc_scr[:, lanes] / l_scr[:, column]).astype(out_ref.dtype)
        lse_ref[...] = m_scr[...] + jnp.log(l_scr[...])


def backward_audio_kernel(
    tiling: Tiling, steps: int,
    first_ref: Ref, last_ref: Ref, table_ref: Ref, frames_ref: Ref,
    q_ref: Ref, dout_ref: Ref, out_ref: Ref, lse_ref: Ref, k_ref: Ref, v_ref: Ref,
    dq_ref: Ref,
    dq_scr: Ref,
) -> None:  # fmt: skip
    """Compute the gradient of q for one audio tile, over its video tiles.

    dout_ref (R, H·d) is the gradient of the output. Scratch: dq_scr (R, H·d), before the softmax scale.
    Output: dq_ref (R, H·d).
    """
    video_tile, step, needed = _inner_tile(first_ref, last_ref)

    @pl.when(step == 0)
    def _():
        dq_scr[...] = jnp.zeros_like(dq_scr)

    @pl.when(needed)
    def _():
        log_mask = _log_mask(tiling, table_ref, frames_ref, video_tile)
        k, v = _load_video(tiling, k_ref, video_tile), _load_video(tiling, v_ref, video_tile)
        for column, lanes in _heads(tiling):
            s = _dot(q_ref[:, lanes], k[:, lanes], _A_BT) * tiling.scale + log_mask
            p = jnp.exp(s - lse_ref[:, column])
            dp = _dot(dout_ref[:, lanes], v[:, lanes], _A_BT)
            ds = p * (dp - _delta(out_ref[:, lanes], dout_ref[:, lanes]))
            dq_scr[:, lanes] += _dot(ds.astype(k.dtype), k[:, lanes], _A_B)

    @pl.when(step == steps - 1)
    def _():
        dq_ref[...] = (dq_scr[...] * tiling.scale).astype(dq_ref.dtype)


def backward_video_kernel(
    tiling: Tiling, steps: int,
    first_ref: Ref, last_ref: Ref, table_ref: Ref, frames_ref: Ref,
    q_ref: Ref, dout_ref: Ref, out_ref: Ref, lse_ref: Ref, k_ref: Ref, v_ref: Ref,
    dk_ref: Ref, dv_ref: Ref,
    dk_scr: Ref, dv_scr: Ref,
) -> None:  # fmt: skip
    """Compute the gradients of k and v for one video tile, over the audio tiles that read it.

    dout_ref (R, H·d) is the gradient of the output. Scratch: dk_scr (S, H·d), before the softmax scale, and
    dv_scr (S, H·d). Outputs: dk_ref and dv_ref (S, H·d).
    """
    audio_tile, step, needed = _inner_tile(first_ref, last_ref)
    video_tile = pl.program_id(1)

    @pl.when(step == 0)
    def _():
        dk_scr[...] = jnp.zeros_like(dk_scr)
        dv_scr[...] = jnp.zeros_like(dv_scr)

    @pl.when(needed)
    def _():
        log_mask = _log_mask(tiling, table_ref, frames_ref, video_tile)
        q, dout, out, lse = (
            _load_audio(tiling, ref, audio_tile) for ref in (q_ref, dout_ref, out_ref, lse_ref)
        )
        k, v = _load_video(tiling, k_ref, video_tile), _load_video(tiling, v_ref, video_tile)
        for column, lanes in _heads(tiling):
            s = _dot(q[:, lanes], k[:, lanes], _A_BT) * tiling.scale + log_mask
            p = jnp.exp(s - lse[:, column])
            dv_scr[:, lanes] += _dot(p.astype(v.dtype), dout[:, lanes], _AT_B)
            dp = _dot(dout[:, lanes], v[:, lanes], _A_BT)
            ds = p * (dp - _delta(out[:, lanes], dout[:, lanes]))
            dk_scr[:, lanes] += _dot(ds.astype(q.dtype), q[:, lanes], _AT_B)

    @pl.when(step == steps - 1)
    def _():
        dk_ref[...] = (dk_scr[...] * tiling.scale).astype(dk_ref.dtype)
        dv_ref[...] = dv_scr[...].astype(dv_ref.dtype)


def _inner_tile(first_ref, last_ref) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the inner tile of this step, the step, and whether the outer tile needs that inner tile."""
    outer, step = pl.program_id(1), pl.program_id(2)
    tile = first_ref[outer] + step
    return tile, step, tile <= last_ref[outer]


def _heads(tiling: Tiling) -> list[tuple[slice, slice]]:
    """Return, for each head, its column of statistics and its columns of q, k and v."""
    dim = tiling.head_dim
    return [(slice(h, h + 1), slice(h * dim, (h + 1) * dim)) for h in range(tiling.num_heads)]


def _dot(a: jax.Array, b: jax.Array, contracted: tuple[tuple[int, ...], tuple[int, ...]]) -> Any:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, (contracted, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def _delta(out: jax.Array, dout: jax.Array) -> jax.Array:
    """Return Σ_j p_j·dp_j of each row, (R, 1), which the softmax's derivative subtracts: out · dout."""
    return jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), axis=-1, keepdims=True)


def _log_mask(tiling: Tiling, table_ref, frames_ref, video_tile: jax.Array) -> jax.Array:
    """Return log(M + ε) of a pair of tiles, (R, S); MASK_VALUE for frames past the end."""
    shape = (tiling.audio_tile, tiling.video_tile)
    frame = video_tile * tiling.video_tile + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    log_mask = jnp.zeros(shape, jnp.float32)
    if tiling.mask.enabled:
        distance = jnp.abs(frame - frames_ref[...].reshape(tiling.audio_tile, 1))
        values = [table_ref[:, index : index + 1] for index in range(tiling.mask.fade_range + 2)]
        log_mask = select_value(values, distance - tiling.mask.window)
    if tiling.video_length % tiling.video_tile:
        log_mask = jnp.where(frame < tiling.video_length, log_mask, MASK_VALUE)
    return log_mask


def _load_video(tiling: Tiling, ref, tile: jax.Array) -> jax.Array:
    return _load(ref, tile * tiling.video_tile, tiling.video_length, tiling.video_tile)


def _load_audio(tiling: Tiling, ref, tile: jax.Array) -> jax.Array:
    return _load(ref, tile * tiling.audio_tile, tiling.audio_length, tiling.audio_tile)


def _load(ref, start: jax.Array, length: int, tile: int) -> jax.Array:
    """Return a tile, with zeros past the end of the array, where memory holds arbitrary values."""
    if length % tile == 0:
        return ref[...]
    row = start + jax.lax.broadcasted_iota(jnp.int32, ref.shape, 0)
    return jnp.where(row < length, ref[...], jnp.zeros((), ref.dtype))
