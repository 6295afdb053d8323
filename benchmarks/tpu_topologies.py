"""TPU programs compiled on a machine without a TPU, and what the compiler says of them."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flowley_jax.training.chips import devices_of

# Four chips of each generation.
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


def mesh_of(generation: str, shape: tuple[int, ...] = (1,), axes: tuple[str, ...] = ("data",)) -> Mesh:
    """A mesh of the first devices of a topology; needs libtpu, and no TPU."""
    found, _ = devices_of(TOPOLOGIES[generation])
    devices = np.asarray(found)[: int(np.prod(shape))].reshape(shape)
    return Mesh(devices, axes, axis_types=(AxisType.Auto,) * len(axes))


def compile_on(generation: str, program: Any, shapes: Sequence[jax.ShapeDtypeStruct]) -> jax.stages.Compiled:
    """A jitted function compiled for one chip."""
    mesh = mesh_of(generation)
    whole = NamedSharding(mesh, PartitionSpec())
    placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for x in shapes]
    with jax.set_mesh(mesh):
        return program.lower(*placed).compile()


def costs(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Of one device's program: bytes to and from HBM and FLOPs of all operations (for kernels, the
    estimate they hand to the compiler); the largest kernel's VMEM; peak bytes beside inputs and outputs.
    """
    analysis: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    scopes = re.findall(r'"used_scoped_memory_configs":\[([^\]]*)\]', compiled.as_text())
    sizes = [int(size) for scope in scopes for size in re.findall(r'"size":"(\d+)"', scope)]
    return {
        "hbm_bytes": analysis["bytes accessed"],
        "flops": analysis["flops"],
        "kernel_vmem_bytes": max(sizes, default=0),
        "temporary_bytes": memory.temp_size_in_bytes,
    }
