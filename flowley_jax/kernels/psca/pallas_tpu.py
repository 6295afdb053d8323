"""PSCA as Pallas kernels for TPU: forward, and backward for queries and for keys and values.

A grid step holds one tile of audio rows, one tile of video frames and all heads of both, in the layout
(rows, H·d) in which the projections leave them: nothing is transposed in memory. The mask is the same for
all heads and every batch item; a step computes it once, from the aligned frame of each row and a table of
its few values. The forward pass is the usual online softmax over the video tiles.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from flowley_jax.kernels.psca.mask import log_mask
from flowley_jax.kernels.psca.plan import Plan, Visits

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
def _backward(plan: Plan, table, q, k, v, out, lse, cotangent):
    by_head = (*q.shape[:2], plan.num_heads, plan.head_dim)
    products = out.astype(jnp.float32) * cotangent.astype(jnp.float32)
    inner = jnp.sum(products.reshape(by_head), axis=-1)
    dq = _backward_audio(plan, table, q, k, v, cotangent, lse, inner)
    dk, dv = _backward_video(plan, table, q, k, v, cotangent, lse, inner)
    return dq, dk, dv


@_without_derivative
def _forward(plan: Plan, table, q, k, v):
    visits = plan.video_visits()
    width, rows = q.shape[-1], plan.audio_tile
    return _call(
        _forward_kernel,
        plan,
        visits,
        table,
        [_audio(plan, width), _video(plan, width), _video(plan, width)],
        (q, k, v),
        [_audio(plan, width), _audio(plan, plan.num_heads)],
        [
            jax.ShapeDtypeStruct(q.shape, v.dtype),
            jax.ShapeDtypeStruct((*q.shape[:2], plan.num_heads), jnp.float32),
        ],
        [(rows, plan.num_heads), (rows, plan.num_heads), (rows, width)],
        name="psca_forward",
        products=2,
    )


def _backward_audio(plan: Plan, table, q, k, v, cotangent, lse, inner):
    visits = plan.video_visits()
    width = q.shape[-1]
    audio, video, heads = _audio(plan, width), _video(plan, width), _audio(plan, plan.num_heads)
    (dq,) = _call(
        _backward_audio_kernel,
        plan,
        visits,
        table,
        [audio, video, video, audio, heads, heads],
        (q, k, v, cotangent, lse, inner),
        [audio],
        [jax.ShapeDtypeStruct(q.shape, q.dtype)],
        [(plan.audio_tile, width)],
        name="psca_backward_audio",
        products=3,
    )
    return dq


def _backward_video(plan: Plan, table, q, k, v, cotangent, lse, inner):
    visits = plan.audio_visits()
    width = q.shape[-1]
    audio, video = _audio(plan, width, outer=False), _video(plan, width, outer=True)
    heads = _audio(plan, plan.num_heads, outer=False)
    return _call(
        _backward_video_kernel,
        plan,
        visits,
        table,
        [audio, video, video, audio, heads, heads],
        (q, k, v, cotangent, lse, inner),
        [video, video],
        [jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)],
        [(plan.video_tile, width), (plan.video_tile, width)],
        name="psca_backward_video",
        products=4,
        audio_outer=False,
    )


def _audio(plan: Plan, columns: int, *, outer: bool = True) -> pl.BlockSpec:
    """A tile of audio rows: that of the grid's middle axis, or the visited one."""
    last = plan.audio_tiles - 1
    if outer:
        return pl.BlockSpec((None, plan.audio_tile, columns), lambda b, i, s, first: (b, i, 0))
    return pl.BlockSpec(
        (None, plan.audio_tile, columns), lambda b, i, s, first: (b, jnp.minimum(first[i] + s, last), 0)
    )


def _video(plan: Plan, columns: int, *, outer: bool = False) -> pl.BlockSpec:
    last = plan.video_tiles - 1
    if outer:
        return pl.BlockSpec((None, plan.video_tile, columns), lambda b, i, s, first: (b, i, 0))
    return pl.BlockSpec(
        (None, plan.video_tile, columns), lambda b, i, s, first: (b, jnp.minimum(first[i] + s, last), 0)
    )


def _call(
    kernel, plan: Plan, visits: Visits, table, in_specs, operands, out_specs, out_shape, scratch, *,
    name: str, products: int, audio_outer: bool = True,
):  # fmt: skip
    grid = (operands[0].shape[0], len(visits.first), visits.count)
    last = plan.audio_tiles - 1
    if audio_outer:
        frames_spec = pl.BlockSpec((1, plan.audio_tile), lambda b, i, s, first: (0, i))
    else:
        frames_spec = pl.BlockSpec(
            (1, plan.audio_tile), lambda b, i, s, first: (0, jnp.minimum(first[i] + s, last))
        )
    table_spec = pl.BlockSpec(table.shape, lambda b, i, s, first: (0, 0))
    call = pl.pallas_call(
        functools.partial(kernel, plan, visits.count),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[table_spec, frames_spec, *in_specs],
            out_specs=out_specs,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=_cost(plan, grid, operands, out_shape, products=products, audio_outer=audio_outer),
        interpret=plan.interpret,
        name=name,
    )
    frames = np.asarray(plan.frames, np.int32)[None]
    return call(np.asarray(visits.first, np.int32), table, jnp.asarray(frames), *operands)


def _cost(plan: Plan, grid, operands, out_shape, *, products: int, audio_outer: bool) -> pl.CostEstimate:
    """What XLA cannot see in a kernel: `products` of matrices for each visited pair of tiles, and bytes."""
    batch, outer, count = grid
    scores = batch * outer * count * plan.audio_tile * plan.video_tile
    video = operands[1:3]
    audio = (operands[0], *operands[3:])
    visited, other = (video, audio) if audio_outer else (audio, video)
    tiles = plan.video_tiles if audio_outer else plan.audio_tiles
    # A single tile stays in VMEM; of several, each is read at every visit.
    reads = 1.0 if tiles == 1 else outer * count / tiles
    return pl.CostEstimate(
        flops=2 * products * scores * plan.num_heads * plan.head_dim,
        transcendentals=scores * plan.num_heads,
        bytes_accessed=int(reads * _bytes(visited)) + _bytes(other) + _bytes(out_shape),
    )


def _bytes(arrays) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)


def _forward_kernel(plan: Plan, count, first, table, frames, q, k, v, out, lse, top, total, acc):
    tile, step = _visited(first)

    @pl.when(step == 0)
    def _():
        top[...] = jnp.full_like(top, NOTHING)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    @pl.when(tile < plan.video_tiles)
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
    plan: Plan, count, first, table, frames, q, k, v, cotangent, lse, inner, dq, acc
):  # fmt: skip
    tile, step = _visited(first)

    @pl.when(step == 0)
    def _():
        acc[...] = jnp.zeros_like(acc)

    @pl.when(tile < plan.video_tiles)
    def _():
        bias = _log_mask(plan, table, frames, tile)
        keys, values = _frames_only(plan, k, tile), _frames_only(plan, v, tile)
        for head, lanes in _heads(plan):
            column = slice(head, head + 1)
            scores = _dot(q[:, lanes], keys[:, lanes], _ROWS_ON_ROWS) * plan.scale + bias
            weights = jnp.exp(scores - lse[:, column])
            dweights = _dot(cotangent[:, lanes], values[:, lanes], _ROWS_ON_ROWS)
            dscores = weights * (dweights - inner[:, column])
            acc[:, lanes] += _dot(dscores.astype(k.dtype), keys[:, lanes], _COLUMNS_ON_ROWS)

    @pl.when(step == count - 1)
    def _():
        dq[...] = (acc[...] * plan.scale).astype(dq.dtype)


def _backward_video_kernel(
    plan: Plan, count, first, table, frames, q, k, v, cotangent, lse, inner, dk, dv, dk_acc, dv_acc
):  # fmt: skip
    tile, step = _visited(first)
    video_tile = pl.program_id(1)

    @pl.when(step == 0)
    def _():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    @pl.when(tile < plan.audio_tiles)
    def _():
        bias = _log_mask(plan, table, frames, video_tile)
        queries, cotangents, lses, inners = (
            _rows_only(plan, array, tile) for array in (q, cotangent, lse, inner)
        )
        keys, values = _frames_only(plan, k, video_tile), _frames_only(plan, v, video_tile)
        for head, lanes in _heads(plan):
            column = slice(head, head + 1)
            scores = _dot(queries[:, lanes], keys[:, lanes], _ROWS_ON_ROWS) * plan.scale + bias
            weights = jnp.exp(scores - lses[:, column])
            dv_acc[:, lanes] += _dot(weights.astype(v.dtype), cotangents[:, lanes], _ROWS_SUMMED)
            dweights = _dot(cotangents[:, lanes], values[:, lanes], _ROWS_ON_ROWS)
            dscores = weights * (dweights - inners[:, column])
            dk_acc[:, lanes] += _dot(dscores.astype(q.dtype), queries[:, lanes], _ROWS_SUMMED)

    @pl.when(step == count - 1)
    def _():
        dk[...] = (dk_acc[...] * plan.scale).astype(dk.dtype)
        dv[...] = dv_acc[...].astype(dv.dtype)


def _visited(first):
    """The tile of the inner axis that this step visits, which may lie past the last one, and the step."""
    step = pl.program_id(2)
    return first[pl.program_id(1)] + step, step


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
