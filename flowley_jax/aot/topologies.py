"""Devices of a TPU topology that this machine does not have, described by libtpu."""

import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from flowley_jax.common.devices import TPU_SPECS, DeviceSpec
from flowley_jax.errors import FlowleyError

# Without these, libtpu looks for the machine's own TPU, locks it, and logs errors.
_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def topology_devices(topology: str, *, slices: int = 1) -> tuple[Sequence[Any], DeviceSpec | None]:
    """Return the devices of a topology and the spec of each.

    TPU topologies need libtpu but no TPU.

    Args:
      topology: chips in each direction, such as v5e:16x16, or "cpu" for this machine's own devices.
      slices: number of such slices.

    Raises:
      FlowleyError: the chip or topology does not exist, or libtpu is not installed.
    """
    if topology == "cpu":
        return jax.devices("cpu"), None
    name, _, shape = topology.partition(":")
    if name not in TPU_SPECS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise FlowleyError(
            f"topology {topology!r} must be cpu, or one of {', '.join(TPU_SPECS)} as in v5e:16x16"
        )
    for variable, value in _NO_TPU_HERE.items():
        os.environ.setdefault(variable, value)
    options = {"num_slices": slices} if slices > 1 else {}
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:  # libtpu has its own exception types
        raise FlowleyError(f"topology {topology!r}: {_reason(error)}") from error
    return description.devices, TPU_SPECS[name]


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "not installed" in text or "libtpu" in text:
        return (
            "needs libtpu: run `make .tpu`, then the same command with PYTHONPATH=.tpu JAX_PLATFORMS=cpu "
            "in front"
        )
    if "chips_per_host_bounds" in text:
        return "no slice has this shape; v5e and v6e have 2x2, 2x4, 4x4, 4x8, …, and v5p has 2x2x1, 2x2x2, …"
    return text[:200]
