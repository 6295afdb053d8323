"""Where everything of a run lives on the devices: the mesh, and one table of rules.

Weights, and what belongs to each of them (moments, averages), are stored split over `fsdp` and `tensor`. A
step gathers them over `fsdp`, in the compute type, where it uses them; their gradients go back to the
stored form. A batch is split over `data` and `fsdp`, and never over `tensor`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flowley_jax.config import ExperimentConfig, MeshConfig
from flowley_jax.errors import FlowleyError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
# Path of a weight, and the axes of its last two dimensions (in, out); the first that fits counts.
RULES: tuple[tuple[str, tuple[str | None, str | None]], ...] = (
    # Its outputs are the latent's channels, which no mesh divides.
    (r"final_conv/kernel", ("fsdp", None)),
    # Gated nets: the hidden channels are split, and summed again by the second map.
    (r"(w1|w3)/kernel", ("fsdp", "tensor")),
    (r"w2/kernel", ("tensor", "fsdp")),
    # After attention, whose heads are split.
    (r"out/kernel", ("tensor", "fsdp")),
    (r"kernel", (None, "fsdp")),
)
_UNTOUCHED = PartitionSpec()


def mesh_sizes(config: MeshConfig, devices: int, *, slices: int = 1) -> dict[str, int]:
    """Devices along each axis of a mesh of so many.

    Args:
      slices: that the devices are in; `data` spans them.

    Raises:
      FlowleyError: the sizes do not make up the number of devices, or the slices do not divide `data`.
    """
    rest = config.fsdp * config.tensor
    data = devices // rest if config.data == -1 else config.data
    if data * rest != devices or not data:
        rest_named = f"mesh.fsdp={config.fsdp} × mesh.tensor={config.tensor}"
        asked = (
            f"{rest_named} must divide the number of devices, {devices}"
            if config.data == -1
            else f"mesh.data={config.data} × {rest_named} must be the number of devices, {devices}"
        )
        raise FlowleyError(asked)
    if data % slices:
        raise FlowleyError(f"mesh.data={data} must be a multiple of the {slices} slices that it spans")
    return dict(zip(AXES, (data, config.fsdp, config.tensor), strict=True))


def check_sizes(config: ExperimentConfig, sizes: Mapping[str, int]) -> None:
    """Raises FlowleyError where a mesh of these sizes does not divide what must be divided."""
    parts, tensor = math.prod(sizes[axis] for axis in BATCH_AXES), sizes["tensor"]
    if config.data.batch_size % parts:
        raise FlowleyError(
            f"data.batch_size={config.data.batch_size} must be a multiple of data × fsdp = {parts} devices"
        )
    if config.model.num_heads % tensor:
        raise FlowleyError(
            f"model.num_heads={config.model.num_heads} must be a multiple of mesh.tensor={tensor}"
        )


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices, or of those given; over several slices, `data` spans them.

    Raises:
      FlowleyError: see `mesh_sizes`.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    data, fsdp, tensor = mesh_sizes(config, len(devices), slices=slices).values()
    if slices > 1:
        placed = mesh_utils.create_hybrid_device_mesh(
            (data // slices, fsdp, tensor),
            (slices, 1, 1),
            devices=devices,
            allow_split_physical_axes=True,
        )
    else:
        placed = mesh_utils.create_device_mesh(
            (data, fsdp, tensor), devices=devices, allow_split_physical_axes=True
        )
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def make_layout(config: ExperimentConfig, devices: Sequence[Any] | None = None) -> "Layout":
    """The layout of a run over all devices, or over those given.

    Raises:
      FlowleyError: the mesh does not fit the devices, or does not divide batch or heads.
    """
    mesh = make_mesh(config.mesh, devices)
    check_sizes(config, mesh.shape)
    return Layout(mesh, config.model.dtype)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a run is laid out over a mesh; `dtype` is the type in which weights are gathered."""

    mesh: Mesh
    dtype: Any

    @property
    def batch(self) -> NamedSharding:
        """Of arrays whose first axis is the batch."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    @property
    def whole(self) -> NamedSharding:
        """Of arrays that every device holds."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch_parts(self) -> int:
        """Into how many parts a batch is split."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    def described(self) -> str:
        """The mesh in words."""
        sizes = " × ".join(f"{axis} {self.mesh.shape[axis]}" for axis in AXES)
        return f"mesh {sizes}"

    def of_state(self, abstract: Any) -> Any:
        """Sharding of every leaf of a state, a tree of arrays or of their shapes."""
        return jax.tree.map_with_path(
            lambda path, leaf: NamedSharding(self.mesh, self._stored(path_name(path), leaf.shape)), abstract
        )

    @staticmethod
    def placed(shapes: Any, shardings: Any) -> Any:
        """Shapes of arrays, each with its sharding: what a program is compiled for."""
        return jax.tree.map(
            lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, shardings
        )

    def left_whole(self, abstract: Any) -> list[str]:
        """Weights that the rules would split and the mesh cannot, with their shapes."""
        return [
            f"{path_name(path)} {leaf.shape}"
            for path, leaf in jax.tree.leaves_with_path(abstract)
            if self._stored(path_name(path), leaf.shape, strict=False)
            != self._stored(path_name(path), leaf.shape)
        ]

    def fetch(self, weights: Any, *, but: tuple[str, ...] = ()) -> Any:
        """Weights as a step uses them: gathered over `fsdp`, matrices in the compute type.

        Args:
          but: names at the top of the tree that are left as they are.
        """
        if self.mesh.size == 1:
            return weights

        def gathered(path, leaf):
            name = path_name(path)
            stored = self._stored(name, leaf.shape)
            if stored == _UNTOUCHED or name.split("/")[0] in but:
                return leaf
            used = PartitionSpec(*(None if axis == "fsdp" else axis for axis in stored))
            return _gather(
                leaf, NamedSharding(self.mesh, used), NamedSharding(self.mesh, stored), jnp.dtype(self.dtype)
            )

        return jax.tree.map_with_path(gathered, weights)

    def jit(self, function, **options) -> "MeshProgram":
        """The jitted function, compiled for and called on this mesh."""
        return MeshProgram(jax.jit(function, **options), self.mesh)

    def on_host(self, arrays: Any) -> Any:
        """Whole arrays in the memory of every process, which all have to ask for them."""
        return jax.device_get(jax.jit(lambda x: x, out_shardings=self.whole)(arrays))

    def split_batch(self, arrays: Any) -> Any:
        """Arrays inside a program, split along the batch."""
        if self.mesh.size == 1:
            return arrays
        return jax.lax.with_sharding_constraint(arrays, self.batch)

    def rows(self, batch_size: int) -> tuple[np.ndarray, int]:
        """Which rows of a batch each group of processes feeds, (groups, rows), and the group of this one.

        Processes that share a part of the batch, because `tensor` spans them, make up a group.
        """
        owned: dict[int, set[int]] = {}
        for device, index in self.batch.devices_indices_map((batch_size,)).items():
            owned.setdefault(device.process_index, set()).update(range(*index[0].indices(batch_size)))
        groups = sorted({tuple(sorted(rows)) for rows in owned.values()})
        return np.asarray(groups), groups.index(tuple(sorted(owned[jax.process_index()])))

    def place_rows(self, arrays: Any) -> Any:
        """A batch from the rows that this process feeds."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.batch, x), arrays)

    def place_weights(self, weights: Any) -> Any:
        """Weights that every process has whole, each where a state keeps it."""
        return jax.tree.map(
            lambda x, at: jax.make_array_from_callback(x.shape, at, lambda index: np.asarray(x)[index]),
            weights,
            self.of_state(weights),
        )

    def place(self, arrays: Any) -> Any:
        """A batch that every process has read whole, split where it can be divided."""

        def put(x):
            sharding = self.whole if len(x) % self.batch_parts else self.batch
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        return jax.tree.map(put, arrays)

    def _stored(self, name: str, shape: tuple[int, ...], *, strict: bool = True) -> PartitionSpec:
        axes = next((axes for pattern, axes in RULES if re.search(rf"(^|/){pattern}(/|$)", name)), None)
        if axes is None or len(shape) < 2:
            return _UNTOUCHED
        fitting = [
            axis
            if axis and self.mesh.shape[axis] > 1 and not (strict and size % self.mesh.shape[axis])
            else None
            for axis, size in zip(axes, shape[-2:], strict=True)
        ]
        return PartitionSpec(*(None,) * (len(shape) - 2), *fitting) if any(fitting) else _UNTOUCHED


@dataclasses.dataclass(frozen=True)
class MeshProgram:
    """A jitted function and the mesh it runs on."""

    jitted: Any
    mesh: Mesh

    def __call__(self, *args):
        with jax.set_mesh(self.mesh):
            return self.jitted(*args)

    def lower(self, *args) -> jax.stages.Lowered:
        """The program for arguments, or for their shapes, not compiled yet."""
        with jax.set_mesh(self.mesh):
            return self.jitted.lower(*args)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(weight, used: NamedSharding, stored: NamedSharding, dtype):
    # Without the first constraint XLA gathers the float32 weight, and casts it afterwards.
    cast = jax.lax.with_sharding_constraint(weight.astype(dtype), stored)
    return jax.lax.with_sharding_constraint(cast, used)


def _gather_forward(weight, used, stored, dtype):
    return _gather(weight, used, stored, dtype), None


def _gather_backward(used, stored, dtype, residuals, cotangent):
    del used, dtype, residuals
    return (jax.lax.with_sharding_constraint(cotangent.astype(jnp.float32), stored),)


_gather.defvjp(_gather_forward, _gather_backward)


def path_name(path) -> str:
    """Dotted with slashes: the names and numbers that lead to a leaf of a tree."""
    keys = [getattr(part, "key", getattr(part, "name", getattr(part, "idx", None))) for part in path]
    return "/".join(map(str, keys))
