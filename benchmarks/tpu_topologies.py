"""Compile programs for TPUs on a machine without one, and read the compiler's cost analysis."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flowley_jax.aot.topologies import topology_devices

# Four chips of each generation.
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


def compile_on(generation: str, program: Any, shapes: Sequence[jax.ShapeDtypeStruct]) -> jax.stages.Compiled:
    """Compile a jitted function for one chip. This needs libtpu, but no TPU."""
    devices, _ = topology_devices(TOPOLOGIES[generation])
    mesh = Mesh(np.asarray(devices)[:1], ("data",), axis_types=(AxisType.Auto,))
    replicated = NamedSharding(mesh, PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated) for x in shapes]
    with jax.set_mesh(mesh):
        return program.lower(*arguments).compile()


def costs(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Return the compiler's costs of one device's program.

    Returns:
      hbm_bytes: bytes read from and written to HBM by all operations; kernels report their own estimate.
      flops: FLOPs of all operations; kernels report their own estimate.
      kernel_vmem_bytes: vector memory of the largest kernel; 0 without kernels.
      temporary_bytes: peak memory in addition to inputs and outputs.
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
