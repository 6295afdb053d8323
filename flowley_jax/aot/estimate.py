"""The cost of a compiled program: memory, FLOPs, collectives and time, as numbers and as a table."""

import dataclasses
import math
import time
from typing import Any

import jax

from flowley_jax.common.devices import DeviceSpec
from flowley_jax.errors import FlowleyError

_MIB = 2**20


class DoesNotFitError(FlowleyError):
    """The compiler found no way to fit a program into a device's memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of one program (a training step, or a guided sample) on one topology.

    Attributes:
      topology, devices, mesh: what the program was compiled for.
      clips, tokens: size of a batch.
      memory: bytes on one device, by kind.
      device_memory: bytes that a device has; 0 on CPU.
      flops: FLOPs of the whole batch, without recomputation.
      collectives: count and bytes by kind of collective, on one device.
      step_seconds: duration at the assumed share of peak FLOPs; 0 on CPU.
      compile_seconds: duration of the compilation on this machine.
    """

    topology: str
    devices: int
    mesh: dict[str, int]
    clips: int
    tokens: int
    memory: dict[str, int]
    device_memory: int
    flops: float
    collectives: dict[str, tuple[int, int]]
    step_seconds: float
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the program fits into a device's memory."""
        return not self.device_memory or sum(self.memory.values()) <= self.device_memory


def timed_compile(lowered: jax.stages.Lowered, topology: str) -> tuple[Any, float]:
    """Compile a program; return it with the seconds that it took.

    Raises:
      DoesNotFitError: the compiler ran out of the device's memory.
    """
    started = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        raise DoesNotFitError(
            f"{topology}: does not fit: {text.partition('RESOURCE_EXHAUSTED: ')[2][:200]}"
        ) from error
    return compiled, time.perf_counter() - started


def seconds_at(mfu: float, flops: float, devices: int, spec: DeviceSpec | None) -> float:
    """Return the seconds that `flops` take at this share of the devices' peak; 0 for an unknown peak."""
    return flops / (devices * spec.peak_flops * mfu) if spec else 0.0


def device_bytes(shapes: Any) -> int:
    """Return the bytes that one device holds of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )


def format_table(estimate: Estimate, *, steps: int, mfu: float) -> str:
    """Return the estimate as lines of text: memory, FLOPs, collectives, speed.

    Args:
      steps: number of steps of a whole run, for its device-hours; 0 leaves them out.
      mfu: the share of peak FLOPs that the step time assumes.
    """
    mesh = " × ".join(f"{axis} {size}" for axis, size in estimate.mesh.items())
    lines = [
        f"{estimate.topology}: {estimate.devices} devices, {mesh}",
        f"compiled in {estimate.compile_seconds:.0f} s",
        f"batch: {estimate.clips} clips, {estimate.tokens:,} tokens",
        "",
        "memory per device, MiB",
        *(f"  {kind:<14}{size / _MIB:>10,.0f}" for kind, size in estimate.memory.items()),
        _total(estimate),
        "",
        f"FLOPs: {estimate.flops:.3g}, {estimate.flops / estimate.devices:.3g} per device",
        "collectives per device",
    ]
    for kind, (count, size) in estimate.collectives.items():
        lines.append(f"  {kind:<20}{count:>6} times{size / _MIB:>10,.0f} MiB")
    if not estimate.collectives:
        lines.append("  none")
    if estimate.step_seconds:
        seconds = estimate.step_seconds
        hours = seconds * steps / 3600
        lines += [
            "",
            f"at {100 * mfu:.0f} % of the peak (assumed, not measured):",
            f"  {1e3 * seconds:.0f} ms, {estimate.clips / seconds:,.0f} clips/s, "
            f"{estimate.tokens / seconds:,.0f} tokens/s",
        ]
        if steps:
            lines.append(
                f"  {steps:,} steps: {hours:,.1f} hours, {hours * estimate.devices:,.0f} device-hours"
            )
    return "\n".join(lines)


def _total(estimate: Estimate) -> str:
    total = sum(estimate.memory.values())
    line = f"  {'total':<14}{total / _MIB:>10,.0f}"
    if not estimate.device_memory:
        return line
    share = 100 * total / estimate.device_memory
    verdict = "fits" if estimate.fits else "DOES NOT FIT"
    return f"{line} of {estimate.device_memory / _MIB:,.0f} ({share:.0f} %): {verdict}"
