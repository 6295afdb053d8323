"""PSCA as Pallas kernels for TPU: forward, and backward for queries and for keys and values.

A grid step holds one tile of audio rows, one tile of video frames and all heads of both, in the layout
(rows, H·d) in which the projections leave them: nothing is transposed in memory. The mask is the same for
all heads and every batch item; a step computes it once, from the aligned frame of each row and a table of
its few values. The forward pass is the usual online softmax over the video tiles.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from flowley_jax.kernels.psca.mask import log_mask
from flowley_jax.kernels.psca.plan import Plan, Visits

Axis = Literal["audio", "video"]

# Of a score that counts for nothing: finite, so that differences of two of them are.
NOTHING = -0.7 * float(np.finfo(np.float32).max)

_ROWS_ON_ROWS = ((1,), (1,))
_COLUMNS_ON_ROWS = ((1,), (0,))
_ROWS_SUMMED = ((0,), (0,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(plan: Plan, table, q, k, v):
    """Attention output (B, Ta, H·d) of q (B, Ta, H·d), k, v (B, Tv, H·d).

    Args:
      table: (1, δ + 2) float32, log(M + ε) at distances ≤ ω, ω + 1, …, ω + δ, and beyond; NOTHING for a
        logarithm of zero.
    """
    return _forward(plan, table, q, k, v)[0]


def _attend_fwd(plan: Plan, table, q, k, v):
    out, lse = _forward(plan, table, q, k, v)
    return out, (table, q, k, v, out, lse)


def _attend_bwd(plan: Plan, residuals, cotangent):
    table, q, k, v, _, _ = residuals
    gradients: Any = _backward(plan, *residuals, cotangent)
    dq, dk, dv = gradients
    return jnp.zeros_like(table), dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


attend.defvjp(_attend_fwd, _attend_bwd)


def _refuse(*_):
    raise NotImplementedError(
        "second derivatives of psca(implementation='pallas') are not implemented; take implementation='xla'"
    )


def _without_derivative(kernel) -> Any:
    """The kernel, whose derivative is refused in words: JAX's own refusal has none."""
    refusing = jax.custom_vjp(kernel, nondiff_argnums=(0,))
    refusing.defvjp(_refuse, _refuse)
    return refusing


@_without_derivative
def _forward(plan: Plan, table, q, k, v):
    statistics = (*q.shape[:2], plan.num_heads)
    return _call(
        _forward_kernel,
        plan,
        table,
        outer="audio",
        audio=(q,),
        video=(k, v),
        outputs=[jax.ShapeDtypeStruct(q.shape, v.dtype), jax.ShapeDtypeStruct(statistics, jnp.float32)],
        scratch=[plan.num_heads, plan.num_heads, q.shape[-1]],
        products=2,
        name="psca_forward",
    )


@_without_derivative
def _backward(plan: Plan, table, q, k, v, out, lse, cotangent):
    call = functools.partial(_call, audio=(q, cotangent, out, lse), video=(k, v))
    (dq,) = call(
        _backward_audio_kernel,
        plan,
        table,
        outer="audio",
        outputs=[jax.ShapeDtypeStruct(q.shape, q.dtype)],
        scratch=[q.shape[-1]],
        products=3,
        name="psca_backward_audio",
    )
    dk, dv = call(
        _backward_video_kernel,
        plan,
        table,
        outer="video",
        outputs=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        scratch=[k.shape[-1], v.shape[-1]],
        products=4,
        name="psca_backward_video",
    )
    return dq, dk, dv


def _call(
    kernel, plan: Plan, table, *,
    outer: Axis, audio, video, outputs, scratch: list[int], products: int, name: str,
):  # fmt: skip
    """Runs a kernel over (batch, tiles of the outer axis, tiles of the other one that each of them visits).

    Args:
      audio, video: operands (B, T, columns) along each axis, in the order in which the kernel takes them.
      outputs: along the outer axis.
      scratch: columns of float32 accumulators with as many rows as a tile of the outer axis.
      products: matrix products for each pair of tiles, for the cost.
    """
    visits = plan.video_visits() if outer == "audio" else plan.audio_visits()
    grid = (audio[0].shape[0], len(visits.first), visits.count)
    sizes = {"audio": plan.audio_tile, "video": plan.video_tile}

    def tile_of(axis: Axis):
        if axis == outer:
            return lambda b, i, s, first, last: i
        # A tile that is read already is not read again.
        return lambda b, i, s, first, last: jnp.minimum(first[i] + s, last[i])

    def tile(axis: Axis, array) -> pl.BlockSpec:
        index = tile_of(axis)
        return pl.BlockSpec((None, sizes[axis], array.shape[-1]), lambda b, *at: (b, index(b, *at), 0))

    frames_tile = tile_of("audio")
    in_specs = [
        pl.BlockSpec(table.shape, lambda *_: (0, 0)),
        pl.BlockSpec((None, 1, plan.audio_tile), lambda *at: (frames_tile(*at), 0, 0)),
        *(tile("audio", array) for array in audio),
        *(tile("video", array) for array in video),
    ]
    call = pl.pallas_call(
        functools.partial(kernel, plan, visits.count),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=in_specs,
            out_specs=[tile(outer, array) for array in outputs],
            scratch_shapes=[pltpu.VMEM((sizes[outer], columns), jnp.float32) for columns in scratch],
        ),
        out_shape=outputs,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=_cost(plan, visits, outer, audio, video, outputs, products=products),
        interpret=plan.interpret,
        name=name,
    )
    first, last = (np.asarray(index, np.int32) for index in (visits.first, visits.last))
    return call(first, last, table, jnp.asarray(_frames_by_tile(plan)), *audio, *video)


def _frames_by_tile(plan: Plan) -> np.ndarray:
    """Aligned frames (tiles, 1, rows): a TPU takes a block of any number of rows where it is a whole row."""
    missing = plan.audio_tiles * plan.audio_tile - plan.audio_length
    frames = np.pad(np.asarray(plan.frames, np.int32), (0, missing), mode="edge")
    return frames.reshape(plan.audio_tiles, 1, plan.audio_tile)


def _cost(
    plan: Plan, visits: Visits, outer: Axis, audio, video, outputs, *, products: int
) -> pl.CostEstimate:
    """What XLA cannot see in a kernel: `products` of matrices for each visited pair of tiles, and bytes."""
    scores = audio[0].shape[0] * visits.total * plan.audio_tile * plan.video_tile
    visited, own, parts = (
        (video, audio, plan.video_tiles) if outer == "audio" else (audio, video, plan.audio_tiles)
    )
    # A single tile stays in VMEM; of several, each is read at every visit.
    reads = 1.0 if parts == 1 else visits.total / parts
    return pl.CostEstimate(
        flops=2 * products * scores * plan.num_heads * plan.head_dim,
        transcendentals=scores * plan.num_heads,
        bytes_accessed=int(reads * _bytes(visited)) + _bytes(own) + _bytes(outputs),
    )


def _bytes(arrays) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)


def _forward_kernel(plan: Plan, count, first, last, table, frames, q, k, v, out, lse, top, total, acc):
    tile, step, needed = _visited(first, last)

    @pl.when(step == 0)
    def _():
        top[...] = jnp.full_like(top, NOTHING)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    @pl.when(needed)
    def _():
        bias = _log_mask(plan, table, frames, tile)
        keys, values = _frames_only(plan, k, tile), _frames_only(plan, v, tile)
        for head, lanes in _heads(plan):
            scores = _dot(q[:, lanes], keys[:, lanes], _ROWS_ON_ROWS) * plan.scale + bias
            column = slice(head, head + 1)
            before = top[:, column]
            now = jnp.maximum(before, jnp.max(scores, axis=-1, keepdims=True))
            shrink, weights = jnp.exp(before - now), jnp.exp(scores - now)
            top[:, column] = now
            total[:, column] = total[:, column] * shrink + jnp.sum(weights, axis=-1, keepdims=True)
            acc[:, lanes] = acc[:, lanes] * shrink + _dot(
                weights.astype(v.dtype), values[:, lanes], _COLUMNS_ON_ROWS
            )

    @pl.when(step == count - 1)
    def _():
        for head, lanes in _heads(plan):
            column = slice(head, head + 1)
            out[:, lanes] = (acc[:, lanes] / total[:, column]).astype(out.dtype)
        lse[...] = top[...] + jnp.log(total[...])


def _backward_audio_kernel(
    plan: Plan, count, first, last, table, frames, q, cotangent, out, lse, k, v, dq, acc
):  # fmt: skip
    tile, step, needed = _visited(first, last)

    @pl.when(step == 0)
    def _():
        acc[...] = jnp.zeros_like(acc)

    @pl.when(needed)
    def _():
        bias = _log_mask(plan, table, frames, tile)
        keys, values = _frames_only(plan, k, tile), _frames_only(plan, v, tile)
        for head, lanes in _heads(plan):
            column = slice(head, head + 1)
            scores = _dot(q[:, lanes], keys[:, lanes], _ROWS_ON_ROWS) * plan.scale + bias
            weights = jnp.exp(scores - lse[:, column])
            dweights = _dot(cotangent[:, lanes], values[:, lanes], _ROWS_ON_ROWS)
            dscores = weights * (dweights - _inner(out[:, lanes], cotangent[:, lanes]))
            acc[:, lanes] += _dot(dscores.astype(k.dtype), keys[:, lanes], _COLUMNS_ON_ROWS)

    @pl.when(step == count - 1)
    def _():
        dq[...] = (acc[...] * plan.scale).astype(dq.dtype)


def _backward_video_kernel(
    plan: Plan, count, first, last, table, frames, q, cotangent, out, lse, k, v, dk, dv, dk_acc, dv_acc
):  # fmt: skip
    tile, step, needed = _visited(first, last)
    video_tile = pl.program_id(1)

    @pl.when(step == 0)
    def _():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    @pl.when(needed)
    def _():
        bias = _log_mask(plan, table, frames, video_tile)
        queries, cotangents, outs, lses = (
            _rows_only(plan, array, tile) for array in (q, cotangent, out, lse)
        )
        keys, values = _frames_only(plan, k, video_tile), _frames_only(plan, v, video_tile)
        for head, lanes in _heads(plan):
            column = slice(head, head + 1)
            scores = _dot(queries[:, lanes], keys[:, lanes], _ROWS_ON_ROWS) * plan.scale + bias
            weights = jnp.exp(scores - lses[:, column])
            dv_acc[:, lanes] += _dot(weights.astype(v.dtype), cotangents[:, lanes], _ROWS_SUMMED)
            dweights = _dot(cotangents[:, lanes], values[:, lanes], _ROWS_ON_ROWS)
            dscores = weights * (dweights - _inner(outs[:, lanes], cotangents[:, lanes]))
            dk_acc[:, lanes] += _dot(dscores.astype(q.dtype), queries[:, lanes], _ROWS_SUMMED)

    @pl.when(step == count - 1)
    def _():
        dk[...] = (dk_acc[...] * plan.scale).astype(dk.dtype)
        dv[...] = dv_acc[...].astype(dv.dtype)


def _inner(out, cotangent):
    """Each row's mean of the weights' gradients, which the softmax takes off."""
    return jnp.sum(out.astype(jnp.float32) * cotangent.astype(jnp.float32), axis=-1, keepdims=True)


def _visited(first, last):
    """The tile of the inner axis that this step visits, the step, and whether the outer tile needs it."""
    outer, step = pl.program_id(1), pl.program_id(2)
    tile = first[outer] + step
    return tile, step, tile <= last[outer]


def _heads(plan: Plan):
    return [(head, slice(head * plan.head_dim, (head + 1) * plan.head_dim)) for head in range(plan.num_heads)]


def _dot(a, b, dimensions) -> Any:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, (dimensions, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def _log_mask(plan: Plan, table, frames, video_tile):
    """log(M + ε) of a tile, (rows, frames); NOTHING for frames past the end."""
    shape = (plan.audio_tile, plan.video_tile)
    frame = video_tile * plan.video_tile + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    bias = jnp.zeros(shape, jnp.float32)
    if plan.window >= 0:
        beyond = jnp.abs(frame - frames[...].reshape(plan.audio_tile, 1)) - plan.window
        bias = log_mask([table[:, entry : entry + 1] for entry in range(plan.fade_range + 2)], beyond)
    if plan.video_length % plan.video_tile:
        bias = jnp.where(frame < plan.video_length, bias, NOTHING)
    return bias


def _frames_only(plan: Plan, ref, tile):
    """A tile of k or v, zero past the last frame, where memory holds anything."""
    return _valid(ref, tile * plan.video_tile, plan.video_length, plan.video_tile)


def _rows_only(plan: Plan, ref, tile):
    return _valid(ref, tile * plan.audio_tile, plan.audio_length, plan.audio_tile)


def _valid(ref, start, length: int, tile: int):
    if length % tile == 0:
        return ref[...]
    row = start + jax.lax.broadcasted_iota(jnp.int32, ref.shape, 0)
    return jnp.where(row < length, ref[...], jnp.zeros((), ref.dtype))
