"""Accelerators that a program can be compiled for: what a chip has, and how to name many of them."""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from flowley_jax.errors import FlowleyError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Memory in bytes and peak dense bfloat16 FLOPs per second of one chip, by its maker's figures."""

    memory: int
    peak_flops: float


CHIPS = {
    "v4": Chip(32 * 2**30, 275e12),
    "v5e": Chip(16 * 2**30, 197e12),
    "v5p": Chip(95 * 2**30, 459e12),
    "v6e": Chip(32 * 2**30, 918e12),
}

GPUS = {
    "A100": Chip(80 * 2**30, 312e12),
    "H100": Chip(80 * 2**30, 989e12),
    "H200": Chip(141 * 2**30, 989e12),
    "B200": Chip(180 * 2**30, 2250e12),
}
# How JAX names a TPU.
_TPU_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls so, if it is one of those known here."""
    if device_kind in _TPU_KINDS:
        return CHIPS[_TPU_KINDS[device_kind]]
    return next((chip for name, chip in GPUS.items() if name in device_kind), None)


# libtpu would look for the machine's own TPU, lock it against a second compilation, and complain.
_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def devices_of(topology: str, *, slices: int = 1) -> tuple[Sequence[Any], Chip | None]:
    """Devices of a topology such as v5e:16x16 (chips in each direction), and their chip; "cpu" are this
    machine's own. TPU topologies need libtpu, and no TPU.

    Raises:
      FlowleyError: no such chip or topology, or libtpu is not installed.
    """
    if topology == "cpu":
        return jax.devices("cpu"), None
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise FlowleyError(f"topology {topology!r} must be cpu, or one of {', '.join(CHIPS)} as in v5e:16x16")
    for variable, value in _NO_TPU_HERE.items():
        os.environ.setdefault(variable, value)
    options = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:  # libtpu's own kinds
        raise FlowleyError(f"topology {topology!r}: {_why(error)}") from error
    return found.devices, CHIPS[name]


def _why(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "not installed" in text or "libtpu" in text:
        return "needs libtpu: `make .tpu`, then the same command after PYTHONPATH=.tpu JAX_PLATFORMS=cpu"
    if "chips_per_host_bounds" in text:
        return (
            "there is no slice of this shape; there are 2x2, 2x4, 4x4, 4x8, … of v5e and v6e, 2x2x1, … of v5p"
        )
    return text[:200]
