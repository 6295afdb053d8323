"""TPU slices by the names that Google Cloud gives them."""

import dataclasses
import re

from flowley_jax.errors import FlowleyError

_CHIPS_PER_HOST = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """A kind of TPU: its software for TPU VMs, and its name on GKE.

    Attributes:
      cores: which the numbers in slice names count for each chip.
      planes: 2 or 3 directions in which chips are connected.
    """

    runtime: str
    gke: str
    cores: int
    planes: int


GENERATIONS = {
    "v4": Generation(runtime="tpu-ubuntu2204-base", gke="tpu-v4-podslice", cores=2, planes=3),
    "v5litepod": Generation(runtime="v2-alpha-tpuv5-lite", gke="tpu-v5-lite-podslice", cores=1, planes=2),
    "v5p": Generation(runtime="v2-alpha-tpuv5", gke="tpu-v5p-slice", cores=2, planes=3),
    "v6e": Generation(runtime="v2-alpha-tpuv6e", gke="tpu-v6e-slice", cores=1, planes=2),
}
# Chips in each direction, of slices that fill their hosts.
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
    """A slice such as v5litepod-16: its generation and number of chips."""

    accelerator: str
    generation: Generation
    chips: int

    @property
    def hosts(self) -> int:
        """Machines that it consists of."""
        return self.chips // _CHIPS_PER_HOST

    @property
    def topology(self) -> str:
        """Chips in each direction, such as 4x4."""
        return _TOPOLOGIES[self.generation.planes][self.chips]


def find_slice(accelerator: str) -> Slice:
    """The slice of a name; raises FlowleyError for one that does not exist."""
    match = re.fullmatch(r"(\w+)-(\d+)", accelerator)
    generation = GENERATIONS.get(match[1]) if match else None
    if match is None or generation is None:
        meant = f"; {accelerator} is v5litepod-{accelerator[4:]}" if accelerator.startswith("v5e-") else ""
        raise FlowleyError(
            f"accelerator={accelerator!r} must be one of {', '.join(GENERATIONS)}, as v5litepod-16{meant}"
        )
    chips, rest = divmod(int(match[2]), generation.cores)
    known = _TOPOLOGIES[generation.planes]
    if rest or chips not in known:
        sizes = ", ".join(f"{match[1]}-{count * generation.cores}" for count in known)
        raise FlowleyError(f"accelerator={accelerator!r} is no slice of whole hosts; there are {sizes}")
    return Slice(accelerator=accelerator, generation=generation, chips=chips)
