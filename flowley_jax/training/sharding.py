"""Sharding of a run's arrays: the device mesh, and one table of rules.

Weights are stored split over `fsdp` and `tensor`, and so are their moments and averages. A step gathers each
weight over `fsdp`, in the compute type, where the weight is used; its gradient returns to the stored
sharding. A batch is split over `data` and `fsdp`, never over `tensor`.
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flowley_jax.common.devices import BATCH_AXES, MESH_AXES
from flowley_jax.common.trees import named_leaves, path_name
from flowley_jax.config import MeshConfig
from flowley_jax.errors import FlowleyError
from flowley_jax.model import ModelConfig

# Path of a weight, and the mesh axes of its last two dimensions (in, out); the first match counts.
RULES: tuple[tuple[str, tuple[str | None, str | None]], ...] = (
    # Its outputs are the latent's channels, which no mesh divides.
    (r"final_conv/kernel", ("fsdp", None)),
    # Gated nets: w1 and w3 split the hidden channels, and w2 sums over them.
    (r"(w1|w3)/kernel", ("fsdp", "tensor")),
    (r"w2/kernel", ("tensor", "fsdp")),
    # The projection after attention, whose heads are split.
    (r"out/kernel", ("tensor", "fsdp")),
    (r"kernel", (None, "fsdp")),
)
_REPLICATED = PartitionSpec()


def mesh_sizes(config: MeshConfig, devices: int, *, slices: int = 1) -> dict[str, int]:
    """Return the number of devices along each mesh axis.

    Args:
      devices: total number of devices.
      slices: number of TPU slices that hold them; `data` spans the slices.

    Raises:
      FlowleyError: the sizes do not multiply to the number of devices, or `data` is not a multiple of the
        slices.
    """
    rest = config.fsdp * config.tensor
    data = devices // rest if config.data == -1 else config.data
    if data * rest != devices or not data:
        product = f"mesh.fsdp={config.fsdp} × mesh.tensor={config.tensor}"
        raise FlowleyError(
            f"{product} must divide the number of devices, {devices}"
            if config.data == -1
            else f"mesh.data={config.data} × {product} must be the number of devices, {devices}"
        )
    if data % slices:
        raise FlowleyError(f"mesh.data={data} must be a multiple of the {slices} slices that it spans")
    return dict(zip(MESH_AXES, (data, config.fsdp, config.tensor), strict=True))


def check_sizes(model: ModelConfig, batch_size: int, sizes: Mapping[str, int]) -> None:
    """Check that a mesh of these sizes divides the batch and the heads; raise FlowleyError if it does not."""
    shards, tensor = math.prod(sizes[axis] for axis in BATCH_AXES), sizes["tensor"]
    if batch_size % shards:
        raise FlowleyError(
            f"data.batch_size={batch_size} must be a multiple of data × fsdp = {shards} devices"
        )
    for name, heads in (("num_heads", model.multi_heads), ("single_num_heads", model.single_heads)):
        if heads % tensor:
            raise FlowleyError(f"model.{name}={heads} must be a multiple of mesh.tensor={tensor}")


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh of all devices, or of those given. With several slices, `data` spans them.

    Raises:
      FlowleyError: see `mesh_sizes`.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    data, fsdp, tensor = mesh_sizes(config, len(devices), slices=slices).values()
    if slices > 1:
        array = mesh_utils.create_hybrid_device_mesh(
            (data // slices, fsdp, tensor),
            (slices, 1, 1),
            devices=devices,
            allow_split_physical_axes=True,
        )
    else:
        array = mesh_utils.create_device_mesh(
            (data, fsdp, tensor), devices=devices, allow_split_physical_axes=True
        )
    return Mesh(array, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def make_layout(
    mesh: MeshConfig, model: ModelConfig, *, batch_size: int, devices: Sequence[Any] | None = None
) -> "Layout":
    """Return the layout of a run over all devices, or over those given.

    Raises:
      FlowleyError: the mesh does not fit the devices, or does not divide the batch or the heads.
    """
    device_mesh = make_mesh(mesh, devices)
    check_sizes(model, batch_size, device_mesh.shape)
    return Layout(device_mesh, model.dtype)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The sharding of a run's arrays over a mesh. Hashable, so it can be a static argument of a program.

    Attributes:
      mesh: devices along `data`, `fsdp` and `tensor`.
      compute_dtype: type in which weights are gathered.
    """

    mesh: Mesh
    compute_dtype: str

    @property
    def batch(self) -> NamedSharding:
        """Sharding of arrays whose first axis is the batch."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of arrays that every device holds whole."""
        return NamedSharding(self.mesh, _REPLICATED)

    @property
    def batch_shards(self) -> int:
        """Number of shards of a batch."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    def __str__(self) -> str:
        return "mesh " + " × ".join(f"{axis} {self.mesh.shape[axis]}" for axis in MESH_AXES)

    def activate(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which a program is traced for this mesh, whatever its caller's mesh is."""
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

    def state_shardings(self, state: Any) -> Any:
        """Return the sharding of every leaf of a state, a tree of arrays or of shapes."""
        return jax.tree.map_with_path(
            lambda path, leaf: NamedSharding(self.mesh, self._stored_spec(path_name(path), leaf.shape)), state
        )

    def abstract_state(self, shapes: Any) -> Any:
        """Return the shapes of a state with their shardings, for compilation and restoring."""
        return with_shardings(shapes, self.state_shardings(shapes))

    def undivided_weights(self, parameters: Any) -> list[str]:
        """Return the names and shapes of weights that the rules split but the mesh does not divide."""
        return [
            f"{name} {leaf.shape}"
            for name, leaf in named_leaves(parameters).items()
            if self._stored_spec(name, leaf.shape, strict=False) != self._stored_spec(name, leaf.shape)
        ]

    def gather_weights(self, weights: Any, *, skip: tuple[str, ...] = ()) -> Any:
        """Return weights as a step uses them: gathered over `fsdp`, with matrices in the compute type.

        Args:
          skip: names at the top of the tree whose weights stay as they are.
        """
        if self.mesh.size == 1:
            return weights

        def gathered(path, leaf):
            name = path_name(path)
            stored = self._stored_spec(name, leaf.shape)
            if stored == _REPLICATED or name.split("/")[0] in skip:
                return leaf
            used = PartitionSpec(*(None if axis == "fsdp" else axis for axis in stored))
            return _gather(
                leaf,
                NamedSharding(self.mesh, used),
                NamedSharding(self.mesh, stored),
                jnp.dtype(self.compute_dtype),
            )

        return jax.tree.map_with_path(gathered, weights)

    def to_host(self, arrays: Any) -> Any:
        """Return whole arrays as NumPy. Collective: every process must call this."""
        if self.mesh.is_multi_process:
            return multihost_utils.process_allgather(arrays, tiled=True)
        return jax.device_get(arrays)

    def constrain_batch(self, arrays: Any) -> Any:
        """Split arrays along the batch, within a program."""
        if self.mesh.size == 1:
            return arrays
        return jax.lax.with_sharding_constraint(arrays, self.batch)

    def batch_rows(self, batch_size: int) -> tuple[np.ndarray, int]:
        """Return which rows of a batch each group of processes reads.

        Processes that hold the same rows, because `tensor` spans them, make up a group.

        Returns:
          Row numbers (groups, rows), and the group of this process.

        Raises:
          FlowleyError: the mesh does not give every process the same number of rows, or splits rows that
            only some processes share.
        """
        owned: dict[int, set[int]] = {}
        for device, index in self.batch.devices_indices_map((batch_size,)).items():
            owned.setdefault(device.process_index, set()).update(range(*index[0].indices(batch_size)))
        groups = sorted({tuple(sorted(rows)) for rows in owned.values()})
        if len({len(rows) for rows in groups}) > 1 or sum(map(len, groups)) != batch_size:
            counts = Counter(device.process_index for device in self.mesh.devices.flat)
            raise FlowleyError(
                f"{self} does not share a batch of {batch_size} evenly: processes 0 … {len(owned) - 1} have "
                f"{', '.join(str(counts[process]) for process in sorted(counts))} devices, and read "
                f"{', '.join(str(len(owned[process])) for process in sorted(owned))} rows. Use hosts that "
                f"all have the same number of devices, a multiple of mesh.tensor={self.mesh.shape['tensor']}"
            )
        return np.asarray(groups), groups.index(tuple(sorted(owned[jax.process_index()])))

    def shard_local_rows(self, rows: Any) -> Any:
        """Return the global batch, given the rows that this process reads."""
        with _transfers_allowed():
            return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.batch, x), rows)

    def shard_batch(self, arrays: Any) -> Any:
        """Return a batch that every process has whole, split over the devices if they divide it."""

        def shard(x):
            sharding = self.replicated if len(x) % self.batch_shards else self.batch
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        with _transfers_allowed():
            return jax.tree.map(shard, arrays)

    def shard_weights(self, weights: Any) -> Any:
        """Return weights that every process has whole, each with its stored sharding."""
        with _transfers_allowed():
            return jax.tree.map(
                lambda x, at: jax.make_array_from_callback(x.shape, at, lambda index: np.asarray(x)[index]),
                weights,
                self.state_shardings(weights),
            )

    def _stored_spec(self, name: str, shape: tuple[int, ...], *, strict: bool = True) -> PartitionSpec:
        """Return the spec of a stored weight; if not `strict`, as if the mesh divided every dimension."""
        axes = next((axes for pattern, axes in RULES if re.search(rf"(^|/){pattern}(/|$)", name)), None)
        if axes is None or len(shape) < 2:
            return _REPLICATED
        dividing = [
            axis
            if axis and self.mesh.shape[axis] > 1 and not (strict and size % self.mesh.shape[axis])
            else None
            for axis, size in zip(axes, shape[-2:], strict=True)
        ]
        return PartitionSpec(*(None,) * (len(shape) - 2), *dividing) if any(dividing) else _REPLICATED


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Return a tree of shapes, each with its sharding."""
    return jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, shardings
    )


def _transfers_allowed() -> contextlib.AbstractContextManager[Any]:
    # With several processes, a transfer guard would take these deliberate transfers for implicit ones.
    return jax.transfer_guard_host_to_device("allow")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(weight, used: NamedSharding, stored: NamedSharding, dtype):
    # Without the first constraint XLA gathers the float32 weight and casts it afterwards.
    cast = jax.lax.with_sharding_constraint(weight.astype(dtype), stored)
    return jax.lax.with_sharding_constraint(cast, used)


def _gather_forward(weight, used, stored, dtype):
    return _gather(weight, used, stored, dtype), None


def _gather_backward(used, stored, dtype, residuals, cotangent):
    del used, dtype, residuals
    return (jax.lax.with_sharding_constraint(cotangent.astype(jnp.float32), stored),)


_gather.defvjp(_gather_forward, _gather_backward)
