"""TPU slices by their Google Cloud names."""

import dataclasses
import re

from flowley_jax.errors import FlowleyError

_CHIPS_PER_HOST = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """A TPU generation.

    Attributes:
      runtime: software version for TPU VMs.
      gke: name of the accelerator on GKE.
      cores: cores per chip that the numbers in slice names count.
      dimensions: dimensions of the chip topology, 2 or 3.
    """

    runtime: str
    gke: str
    cores: int
    dimensions: int


GENERATIONS = {
    "v4": Generation(runtime="tpu-ubuntu2204-base", gke="tpu-v4-podslice", cores=2, dimensions=3),
    "v5litepod": Generation(runtime="v2-alpha-tpuv5-lite", gke="tpu-v5-lite-podslice", cores=1, dimensions=2),
    "v5p": Generation(runtime="v2-alpha-tpuv5", gke="tpu-v5p-slice", cores=2, dimensions=3),
    "v6e": Generation(runtime="v2-alpha-tpuv6e", gke="tpu-v6e-slice", cores=1, dimensions=2),
}
# Topologies of slices that fill their hosts, by dimensions and number of chips.
_TOPOLOGIES = {
    2: {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    3: {
        4: "2x2x1",
        8: "2x2x2",
        16: "2x2x4",
        32: "2x4x4",
        64: "4x4x4",
        128: "4x4x8",
        256: "4x8x8",
        512: "8x8x8",
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """A TPU slice such as v5litepod-16.

    Attributes:
      accelerator: its name.
      generation: its generation.
      chips: its number of chips.
    """

    accelerator: str
    generation: Generation
    chips: int

    @property
    def hosts(self) -> int:
        """Number of machines."""
        return self.chips // _CHIPS_PER_HOST

    @property
    def topology(self) -> str:
        """Chips along each dimension, such as 4x4."""
        return _TOPOLOGIES[self.generation.dimensions][self.chips]


def find_slice(accelerator: str) -> Slice:
    """Return the slice of a name such as v5litepod-16.

    Raises:
      FlowleyError: there is no such slice.
    """
    match = re.fullmatch(r"(\w+)-(\d+)", accelerator)
    generation = GENERATIONS.get(match[1]) if match else None
    if match is None or generation is None:
        hint = f"; {accelerator} is v5litepod-{accelerator[4:]}" if accelerator.startswith("v5e-") else ""
        raise FlowleyError(
            f"accelerator={accelerator!r} must be one of {', '.join(GENERATIONS)} and a size, "
            f"such as v5litepod-16{hint}"
        )
    chips, remainder = divmod(int(match[2]), generation.cores)
    topologies = _TOPOLOGIES[generation.dimensions]
    if remainder or chips not in topologies:
        sizes = ", ".join(f"{match[1]}-{count * generation.cores}" for count in topologies)
        raise FlowleyError(f"accelerator={accelerator!r} must be a slice of whole hosts: {sizes}")
    return Slice(accelerator=accelerator, generation=generation, chips=chips)
