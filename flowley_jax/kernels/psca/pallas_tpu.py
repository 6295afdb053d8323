"""PSCA by Pallas kernels for TPU: checks, the split over a mesh, gradients, and the kernel calls.

`tpu_kernels.py` holds the kernels' bodies, `tiling.py` the sizes of their tiles.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from flowley_jax.common.devices import BATCH_AXES, MESH_AXES, platform_in_use
from flowley_jax.errors import FlowleyError
from flowley_jax.kernels.psca import tpu_kernels
from flowley_jax.kernels.psca.mask import SoftMask
from flowley_jax.kernels.psca.tiling import Axis, TileRanges, Tiling, tile_sizes

# Batch and heads may be split over a mesh; PSCA needs no communication between the shards.
HEAD_AXES = tuple(axis for axis in MESH_AXES if axis not in BATCH_AXES)


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
    """Compute PSCA (see `psca`) on TPU, or on any machine with `interpret`.

    On a mesh, each device computes its shard of the batch and the heads.

    Raises:
      NotImplementedError: the platform, the types or the shapes do not suit the kernels.
      FlowleyError: a second derivative is taken.
    """
    _check_supported(q, k, v, interpret)
    batch_axes, head_axes = _split_axes(q)
    tiling = _make_tiling(
        q, k, mask, num_heads=q.shape[2] // _size(head_axes), scale=scale, interpret=interpret
    )
    # A logarithm of zero would be infinite, and the difference of two of them NaN.
    table = jnp.maximum(mask.log_values(fade_scale), tpu_kernels.MASK_VALUE)[None]

    def per_device(table, q, k, v):
        out: Any = _attention(tiling, table, *(x.reshape(*x.shape[:2], -1) for x in (q, k, v)))
        return out.reshape(q.shape)

    if AxisType.Auto not in jax.sharding.get_abstract_mesh().axis_types:
        return per_device(table, q, k, v)
    # XLA cannot split a kernel by itself.
    spec = PartitionSpec(batch_axes or None, None, head_axes or None, None)
    return jax.shard_map(
        per_device, in_specs=(PartitionSpec(), spec, spec, spec), out_specs=spec, check_vma=False
    )(table, q, k, v)


def _check_supported(q: jax.Array, k: jax.Array, v: jax.Array, interpret: Any) -> None:
    dtypes = {jnp.dtype(x.dtype).name for x in (q, k, v)}
    if dtypes not in ({"float32"}, {"bfloat16"}):
        names = ", ".join(sorted(dtypes))
        raise NotImplementedError(f"q, k and v must all be float32 or all bfloat16, not {names}")
    if not interpret and platform_in_use() != "tpu":
        raise NotImplementedError(
            f"interpret=False: the kernels need a TPU; the platform is {platform_in_use()}"
        )


def _split_axes(q: jax.Array) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the axes of the mesh in use over which XLA splits the batch, and the heads, of q."""
    mesh = jax.sharding.get_abstract_mesh()
    automatic = [
        name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto
    ]
    batch_axes, head_axes = (
        tuple(name for name in names if name in automatic) for names in (BATCH_AXES, HEAD_AXES)
    )
    for what, size, axes in (("batch", q.shape[0], batch_axes), ("heads", q.shape[2], head_axes)):
        if size % _size(axes):
            raise NotImplementedError(
                f"q: {what} {size} cannot be split over {_size(axes)} devices of {'×'.join(axes)}"
            )
    return batch_axes, head_axes


def _size(axes: tuple[str, ...]) -> int:
    return math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in axes)


def _make_tiling(
    q: jax.Array, k: jax.Array, mask: SoftMask, *, num_heads: int, scale: float, interpret: Any
) -> Tiling:
    audio_length, video_length, head_dim = q.shape[1], k.shape[1], q.shape[3]
    tiles = tile_sizes(
        audio_length,
        video_length,
        width=num_heads * head_dim,
        itemsize=q.dtype.itemsize,
        hard_cut=mask.hard_cut,
    )
    if tiles is None:
        raise NotImplementedError(
            f"q: no tile of {num_heads} heads of {head_dim} in {q.dtype} fits a core's vector memory"
        )
    audio_tile, video_tile = tiles
    return Tiling(
        mask=mask,
        audio_length=audio_length,
        video_length=video_length,
        num_heads=num_heads,
        head_dim=head_dim,
        audio_tile=audio_tile,
        video_tile=video_tile,
        scale=scale,
        interpret=interpret,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(tiling: Tiling, table, q, k, v):
    """Return the attention output (B, Ta, H·d) of q (B, Ta, H·d) and k, v (B, Tv, H·d).

    Args:
      table: (1, δ + 2) float32, log(M + ε) by distance (`SoftMask.log_values`), at least MASK_VALUE.
    """
    return _forward(tiling, table, q, k, v)[0]


def _attention_fwd(tiling: Tiling, table, q, k, v):
    out, lse = _forward(tiling, table, q, k, v)
    return out, (table, q, k, v, out, lse)


def _attention_bwd(tiling: Tiling, residuals, dout):
    table, q, k, v, _, _ = residuals
    gradients: Any = _backward(tiling, *residuals, dout)
    dq, dk, dv = gradients
    return jnp.zeros_like(table), dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


_attention.defvjp(_attention_fwd, _attention_bwd)


def _refuse(*_):
    raise FlowleyError("psca(implementation='pallas') has no second derivatives; use implementation='xla'")


def _without_derivative(function: Callable) -> Any:
    """Make differentiating the function raise a clear error; JAX's own has no message."""
    refusing = jax.custom_vjp(function, nondiff_argnums=(0,))
    refusing.defvjp(_refuse, _refuse)
    return refusing


@_without_derivative
def _forward(tiling: Tiling, table, q, k, v):
    """Return the output (B, Ta, H·d) and the log of the softmax's denominator (B, Ta, H)."""
    statistics = (*q.shape[:2], tiling.num_heads)
    return _call(
        tpu_kernels.forward_kernel,
        tiling,
        table,
        outer="audio",
        audio=(q,),
        video=(k, v),
        outputs=[jax.ShapeDtypeStruct(q.shape, v.dtype), jax.ShapeDtypeStruct(statistics, jnp.float32)],
        scratch=[tiling.num_heads, tiling.num_heads, q.shape[-1]],
        products=2,
        name="psca_forward",
    )


@_without_derivative
def _backward(tiling: Tiling, table, q, k, v, out, lse, dout):
    """Return the gradients of q, k and v."""
    call = functools.partial(_call, audio=(q, dout, out, lse), video=(k, v))
    (dq,) = call(
        tpu_kernels.backward_audio_kernel,
        tiling,
        table,
        outer="audio",
        outputs=[jax.ShapeDtypeStruct(q.shape, q.dtype)],
        scratch=[q.shape[-1]],
        products=3,
        name="psca_backward_audio",
    )
    dk, dv = call(
        tpu_kernels.backward_video_kernel,
        tiling,
        table,
        outer="video",
        outputs=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        scratch=[k.shape[-1], v.shape[-1]],
        products=4,
        name="psca_backward_video",
    )
    return dq, dk, dv


def _call(
    kernel: Callable,
    tiling: Tiling,
    table: jax.Array,
    *,
    outer: Axis,
    audio: Sequence[jax.Array],
    video: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    scratch: Sequence[int],
    products: int,
    name: str,
):
    """Run a kernel over the grid (batch, outer tiles, inner tiles that each outer tile needs).

    Args:
      kernel: one of the bodies in `tpu_kernels`.
      tiling: sizes and settings.
      table: log(M + ε) by distance, (1, δ + 2).
      outer: axis of the outer tiles, along which the outputs lie.
      audio: operands (B, Ta, columns), in the kernel's order.
      video: operands (B, Tv, columns), in the kernel's order.
      outputs: shapes and types of the results.
      scratch: columns of each float32 accumulator; its rows are those of an outer tile.
      products: matrix products per pair of tiles, for the cost estimate.
      name: name of the kernel in profiles.
    """
    ranges = tiling.ranges(outer)
    grid = (audio[0].shape[0], len(ranges.first), ranges.steps)

    def tile_index(axis: Axis):
        if axis == outer:
            return lambda b, i, s, first, last: i
        # Past its last inner tile an outer tile keeps that one, which is already in memory.
        return lambda b, i, s, first, last: jnp.minimum(first[i] + s, last[i])

    def block(axis: Axis, array) -> pl.BlockSpec:
        index = tile_index(axis)
        return pl.BlockSpec((None, tiling.rows(axis), array.shape[-1]), lambda b, *at: (b, index(b, *at), 0))

    frames_index = tile_index("audio")
    in_specs = [
        pl.BlockSpec(table.shape, lambda *_: (0, 0)),
        pl.BlockSpec((None, 1, tiling.audio_tile), lambda *at: (frames_index(*at), 0, 0)),
        *(block("audio", array) for array in audio),
        *(block("video", array) for array in video),
    ]
    call = pl.pallas_call(
        functools.partial(kernel, tiling, ranges.steps),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=in_specs,
            out_specs=[block(outer, array) for array in outputs],
            scratch_shapes=[pltpu.VMEM((tiling.rows(outer), columns), jnp.float32) for columns in scratch],
        ),
        out_shape=outputs,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=_cost(tiling, ranges, outer, audio, video, outputs, products=products),
        interpret=tiling.interpret,
        name=name,
    )
    first, last = (np.asarray(index, np.int32) for index in (ranges.first, ranges.last))
    return call(first, last, table, jnp.asarray(tiling.frames_by_tile()), *audio, *video)


def _cost(
    tiling: Tiling,
    ranges: TileRanges,
    outer: Axis,
    audio: Sequence[jax.Array],
    video: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    *,
    products: int,
) -> pl.CostEstimate:
    """Return the kernel's FLOPs and bytes. XLA cannot see into the kernel, but plans with these numbers."""
    scores = audio[0].shape[0] * ranges.pairs * tiling.audio_tile * tiling.video_tile
    if outer == "audio":
        outer_operands, inner_operands, inner_tiles = audio, video, tiling.video_tiles
    else:
        outer_operands, inner_operands, inner_tiles = video, audio, tiling.audio_tiles
    # A single inner tile stays in vector memory; several are read again for each outer tile.
    reads = 1.0 if inner_tiles == 1 else ranges.pairs / inner_tiles
    return pl.CostEstimate(
        flops=2 * products * scores * tiling.num_heads * tiling.head_dim,
        transcendentals=scores * tiling.num_heads,
        bytes_accessed=int(reads * _bytes(inner_operands)) + _bytes(outer_operands) + _bytes(outputs),
    )


def _bytes(arrays: Sequence[jax.Array | jax.ShapeDtypeStruct]) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
