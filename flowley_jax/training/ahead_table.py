"""An estimate as text for people."""

from flowley_jax.training.ahead import Estimate

_MIB = 2**20


def table(estimate: Estimate, *, steps: int, mfu: float) -> str:
    """Lines of a table: memory, work, exchange, speed.

    Args:
      steps: of a whole run, for its chip-hours; 0 for none.
      mfu: that the step time was estimated at.
    """
    mesh = " × ".join(f"{axis} {size}" for axis, size in estimate.mesh.items())
    lines = [
        f"{estimate.topology}: {estimate.devices} devices, {mesh}",
        f"compiled in {estimate.compile_seconds:.0f} s",
        f"batch: {estimate.clips} clips, {estimate.tokens:,} tokens",
        "",
        "memory of one device, MiB",
        *(f"  {kind:<14}{size / _MIB:>10,.0f}" for kind, size in estimate.memory.items()),
        _total(estimate),
        "",
        f"FLOPs: {estimate.flops:.3g}, {estimate.flops / estimate.devices:.3g} on each device",
        "exchange of each device",
    ]
    for kind, (count, size) in estimate.exchanges.items():
        lines.append(f"  {kind:<20}{count:>6} times{size / _MIB:>10,.0f} MiB")
    if not estimate.exchanges:
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
            lines.append(f"  {steps:,} steps: {hours:,.1f} hours, {hours * estimate.devices:,.0f} chip-hours")
    return "\n".join(lines)


def _total(estimate: Estimate) -> str:
    total = sum(estimate.memory.values())
    line = f"  {'all':<14}{total / _MIB:>10,.0f}"
    if not estimate.chip_memory:
        return line
    share = 100 * total / estimate.chip_memory
    verdict = "fits" if estimate.fits else "DOES NOT FIT"
    return f"{line} of {estimate.chip_memory / _MIB:,.0f} ({share:.0f} %): {verdict}"
