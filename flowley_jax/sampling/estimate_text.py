"""The text of an estimate of sampling."""

from collections.abc import Sequence

from flowley_jax.common.durations import format_duration
from flowley_jax.sampling.dry_run import Estimate

MIB = 2**20


def format_estimate(estimate: Estimate) -> str:
    """Return the estimate as text."""
    return "\n".join([*_workload_lines(estimate), "", *_stage_lines(estimate), "", *_host_lines(estimate)])


def _workload_lines(estimate: Estimate) -> list[str]:
    workload, at_least = estimate.workload, "at least " if estimate.is_least else ""
    seconds = sum(clip.seconds for clip in workload.clips)
    windows = sum(batch.windows for batch in workload.batches)
    done = f" ({workload.done} more have their sounds already)" if workload.done else ""
    rooms = ", ".join(map(str, workload.rooms))
    batches = "1 batch" if len(workload.batches) == 1 else f"{len(workload.batches)} batches"
    at_once = f"the network computes {estimate.network.at_once}"
    return [
        f"clips:        {len(workload.clips)}, {seconds:.2f} s in total{done}",
        f"sounds:       {workload.num_samples} per clip",
        f"windows:      {windows} of {estimate.window_seconds:.2f} s in {batches}; {at_once} at a time",
        f"programs:     {len(workload.rooms)} of the network to compile, for batches of {rooms} windows",
        f"evaluations:  {at_least}{estimate.evaluations} of the network per window ({estimate.solver})",
    ]


def _stage_lines(estimate: Estimate) -> list[str]:
    """Return a table of time and memory per stage and in total."""
    rows = [("stage", "time", "weights", "temporaries", "component")]
    for report in estimate.stages:
        seconds = "not measured" if report.seconds is None else format_duration(report.seconds)
        memory = report.memory
        rows.append((report.stage, seconds, _mib(memory.weights), _mib(memory.temporaries), report.component))
    memories = [report.memory for report in estimate.stages]
    weights = sum(memory.weights for memory in memories)
    temporaries = max(memory.temporaries for memory in memories)
    known = [report.seconds for report in estimate.stages if report.seconds is not None]
    total = format_duration(sum(known))
    if estimate.is_least or len(known) < len(memories):
        total = f"at least {total}"
    peak = f"at most {_mib(weights + temporaries)} on each device"
    rows.append(("total", total, _mib(weights), _mib(temporaries), peak))
    network = estimate.network
    measured = (
        "The network was not timed, because too little memory is free"
        if network.seconds is None
        else f"One evaluation of {network.at_once} windows took {network.seconds:.3g} s"
    )
    note = f"Times are estimates; they exclude compilation and writing files. {measured}."
    return [*_aligned(rows), note]


def _host_lines(estimate: Estimate) -> list[str]:
    rows = [(name, _mib(size), "") for name, size in estimate.host.items()]
    return ["host memory that grows with the length of the clips, at most:", *_aligned(rows)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines: the first and the last column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *middle, last in rows:
        cells = [text.rjust(width) for text, width in zip(middle, widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells, last]).rstrip())
    return lines


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB"
