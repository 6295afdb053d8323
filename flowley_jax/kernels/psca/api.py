"""PSCA's one public function, and the choice between its implementations."""

import functools
import logging
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from flowley_jax.devices import platform_in_use
from flowley_jax.errors import FlowleyError
from flowley_jax.kernels import cudnn
from flowley_jax.kernels.psca import pallas_tpu, reference
from flowley_jax.kernels.psca.mask import Window, aligned_frames
from flowley_jax.kernels.psca.plan import Plan, tile_sizes

log = logging.getLogger(__name__)

Implementation = Literal["xla", "pallas", "cudnn"]
# Mesh axes over which a batch, and the heads, may be split; psca needs no exchange between the parts.
BATCH_AXES = ("data", "fsdp")
HEAD_AXIS = "tensor"


def psca(
    q: Float[Array, "B Ta H d"],
    k: Float[Array, "B Tv H d"],
    v: Float[Array, "B Tv H d"],
    *,
    fade_scale,
    video_fps: float,
    audio_fps: float,
    window: int,
    fade_range: int,
    fade,
    mask_floor: float = 1e-6,
    scale: float | None = None,
    implementation: Implementation | None = None,
    interpret: Any = False,
) -> Float[Array, "B Ta H d"]:
    """softmax(q kᵀ·scale + log(M⁽ℓ⁾ + ε)) v, with the mask shared by batch and heads (paper, PSCA).

    Differentiable in q, k and v; the mask has no gradient. Pallas has first, reverse-mode derivatives only.

    Args:
      q, k, v: queries of the audio positions, keys and values of the video frames; for Pallas all float32 or
        all bfloat16, for cuDNN all bfloat16.
      fade_scale: β_ℓ of this depth in [0, 1], a scalar that may be traced; nothing below may.
      video_fps, audio_fps: rates of the two clocks, in frames and positions per second.
      window, fade_range, fade: ω, δ (frames) and the profile F; a negative ω turns the mask off.
      mask_floor: ε; at 0.0 frames outside the windows have weight zero, and only those that share a band of
        rows, or a tile, with a window are read.
      scale: softmax scale, 1/√d unless given.
      implementation: "xla", "pallas" (TPU, or any machine with `interpret`), "cudnn" (NVIDIA GPU), or None,
        which takes cuDNN on GPU and Pallas elsewhere where it can, XLA otherwise, and logs why. A named one
        never falls back.
      interpret: run the kernels in Pallas's interpreter: True, or pltpu.InterpretParams.

    Returns: attention output in the type of v; scores and softmax are float32.

    Raises:
      FlowleyError: shapes do not fit each other, an option is out of its range, the named implementation
        cannot do this call, or the name is unknown.
      NotImplementedError: second derivatives of the Pallas kernels.
    """
    _check_shapes(q, k, v)
    _check_scalars(fade_scale, scale)
    shape = Window(
        video_fps=video_fps,
        audio_fps=audio_fps,
        window=window,
        fade_range=fade_range,
        fade=fade,
        mask_floor=mask_floor,
    )
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    fade_scale = jax.lax.stop_gradient(jnp.asarray(fade_scale, jnp.float32))
    chosen = _choose(shape, q, k, v, implementation, interpret)
    if chosen == "xla":
        return reference.attend(shape, scale, fade_scale, q, k, v)
    if chosen == "cudnn":
        return cudnn.attend(q, k, v, scale=scale, bias=_bias(shape, fade_scale, q, k))
    return _over_mesh(functools.partial(_pallas, shape, scale, interpret), fade_scale, q, k, v)


def _check_shapes(q, k, v) -> None:
    shapes = tuple(jnp.shape(x) for x in (q, k, v))
    fit = all(len(shape) == 4 and 0 not in shape for shape in shapes) and shapes[1] == shapes[2]
    if not fit or (shapes[0][0], *shapes[0][2:]) != (shapes[1][0], *shapes[1][2:]):
        raise FlowleyError(
            f"q {shapes[0]}, k {shapes[1]} and v {shapes[2]} must be (B, Ta, H, d), (B, Tv, H, d) and "
            "(B, Tv, H, d), and none of them empty"
        )
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (q, k, v)):
        raise FlowleyError(f"q {q.dtype}, k {k.dtype} and v {v.dtype} must be floating-point")


def _check_scalars(fade_scale, scale) -> None:
    if jnp.ndim(fade_scale) != 0:
        raise FlowleyError(f"fade_scale has shape {jnp.shape(fade_scale)}, and must be one number")
    if not isinstance(fade_scale, Tracer) and not 0.0 <= float(fade_scale) <= 1.0:
        raise FlowleyError(f"fade_scale={fade_scale} must be in [0, 1]")
    if scale is not None and not isinstance(scale, int | float | np.number):
        raise FlowleyError(f"scale={scale!r} must be a number, and not traced")


def _choose(shape: Window, q, k, v, implementation: Implementation | None, interpret) -> Implementation:
    if implementation not in (None, "xla", "pallas", "cudnn"):
        raise FlowleyError(f"psca implementation {implementation!r} must be xla, pallas, cudnn or None")
    if implementation == "xla":
        return "xla"
    wanted = implementation or ("cudnn" if platform_in_use() == "gpu" and not interpret else "pallas")
    if wanted == "cudnn":
        obstacle = _obstacle_to_cudnn(shape, q, k, v)
    else:
        obstacle = _obstacle_to_pallas(shape, q, k, v, interpret)
    if obstacle is None:
        return wanted
    if implementation:
        raise FlowleyError(f"psca(implementation={implementation!r}): {obstacle}")
    _log_once(obstacle)
    return "xla"


def _obstacle_to_cudnn(shape: Window, q, k, v) -> str | None:
    """Why cuDNN cannot take this call; None if it can."""
    if shape.hard_cut:
        return "with the hard cut cuDNN would read all of the video"
    return cudnn.obstacle(q, k, v)


def _bias(shape: Window, fade_scale, q, k) -> Float[Array, "1 1 Ta Tv"] | None:
    """The logarithm of the mask; None where there is none."""
    if shape.window < 0:
        return None
    return reference.log_mask_of(shape, fade_scale, q.shape[1], k.shape[1])[None, None]


def _obstacle_to_pallas(shape: Window, q, k, v, interpret) -> str | None:
    """Why the Pallas kernels cannot take this call; None if they can."""
    dtypes = {jnp.dtype(x.dtype).name for x in (q, k, v)}
    if dtypes not in ({"float32"}, {"bfloat16"}):
        return f"the kernels take q, k, v of one type, float32 or bfloat16, not {', '.join(sorted(dtypes))}"
    if not interpret and platform_in_use() != "tpu":
        return f"the kernels are for TPU, the platform is {platform_in_use()}"
    batch_axes, head_axes = _split_axes()
    for what, size, axes in (("batch", q.shape[0], batch_axes), ("heads", q.shape[2], head_axes)):
        if size % _parts(axes):
            return f"{what} {size} cannot be split over {_parts(axes)} devices of {'×'.join(axes)}"
    width = q.shape[2] * q.shape[3] // _parts(head_axes)
    if _tiles(shape, q.shape[1], k.shape[1], width, q.dtype) is None:
        return f"no tile of {q.shape[2]} heads of {q.shape[3]} in {q.dtype} fits a core's vector memory"
    return None


def _tiles(shape: Window, audio_length: int, video_length: int, width: int, dtype):
    return tile_sizes(
        audio_length,
        video_length,
        width=width,
        itemsize=dtype.itemsize,
        hard_cut=shape.hard_cut,
    )


@functools.cache
def _log_once(obstacle: str) -> None:
    # On a CPU it is what everybody expects.
    level = logging.DEBUG if platform_in_use() == "cpu" else logging.INFO
    log.log(level, "psca: XLA, because %s", obstacle)


def _pallas(shape: Window, scale: float, interpret, fade_scale, q, k, v):
    batch, audio_length, heads, dim = q.shape
    video_length, width = k.shape[1], heads * dim
    frames = aligned_frames(audio_length, video_length, video_fps=shape.video_fps, audio_fps=shape.audio_fps)
    tiles = _tiles(shape, audio_length, video_length, width, q.dtype)
    assert tiles is not None, "checked before this implementation was chosen"
    audio_tile, video_tile = tiles
    plan = Plan(
        audio_length=audio_length,
        video_length=video_length,
        num_heads=heads,
        head_dim=dim,
        audio_tile=audio_tile,
        video_tile=video_tile,
        window=shape.window,
        fade_range=shape.fade_range,
        hard_cut=shape.hard_cut,
        scale=scale,
        frames=tuple(frames.tolist()),
        interpret=interpret,
    )
    table = jnp.maximum(shape.log_values(fade_scale), pallas_tpu.NOTHING)[None]
    q, k, v = (x.reshape(batch, x.shape[1], width) for x in (q, k, v))
    out: Any = pallas_tpu.attend(plan, table, q, k, v)
    return out.reshape(batch, audio_length, heads, dim)


def _over_mesh(kernel, fade_scale, q, k, v):
    """Runs the kernel on each device's part of batch and heads; XLA cannot split a kernel by itself."""
    batch_axes, head_axes = _split_axes()
    if jax.sharding.AxisType.Auto not in jax.sharding.get_abstract_mesh().axis_types:
        return kernel(fade_scale, q, k, v)
    spec = PartitionSpec(batch_axes or None, None, head_axes or None, None)
    return jax.shard_map(
        kernel, in_specs=(PartitionSpec(), spec, spec, spec), out_specs=spec, check_vma=False
    )(fade_scale, q, k, v)


def _split_axes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The axes of the mesh in use, of those that XLA splits over, for the batch and for the heads."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    automatic = [name for name, kind in kinds.items() if kind == jax.sharding.AxisType.Auto]
    return tuple(name for name in BATCH_AXES if name in automatic), tuple({HEAD_AXIS} & set(automatic))


def _parts(axes: tuple[str, ...]) -> int:
    return math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in axes)
