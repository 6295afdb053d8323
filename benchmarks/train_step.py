"""Compare the published network in JAX and in PyTorch, eager and compiled: make benchmark-train-step

The tasks are the forward pass, the training step and the guided sample, at the published sizes with random
weights and inputs on the device. Each side has its own process. The sides take turns in alternating order, so
that other load on the machine affects all of them equally; on a CPU only two sides run in one session. A
ratio is JAX's time divided by PyTorch's in the same turn. The first call, which compiles, is not included. On
a CPU all sides keep freed memory (`GLIBC_TUNABLES`): requesting gigabytes again in every step would cost more
than the sides differ.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.common import header, host
from flowley_jax.cli import run_main
from flowley_jax.common.devices import device_spec
from flowley_jax.common.files import atomic_write, write_text
from flowley_jax.common.number_flags import define_float, define_int
from flowley_jax.common.ranges import Range

# Task, clips, turns.
CASES = (("forward", 1, 12), ("forward", 4, 8), ("train", 4, 6), ("sample", 1, 4))
LARGE_CASES = (("forward", 64, 20), ("train", 64, 20), ("sample", 8, 5))
OTHERS = ("eager", "compiled")
NAMES = {"jax": "JAX", "eager": "PyTorch", "compiled": "torch.compile"}

_OUT = flags.DEFINE_string("out", "benchmarks/results/train_step", "Folder for the figures and the plot.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute type.")
_LARGE = flags.DEFINE_bool("large", False, "Use batches for an accelerator instead of a CPU.")
_TURNS = define_int(
    "turns", None, "Turns per case; by default each case has its own number.", Range(least=1, most=1000)
)
_PATIENCE = define_float(
    "patience",
    1800.0,
    "Seconds after which --large skips cases that are still compiling.",
    Range(least=0, most=86_400),
)
_ONLY = flags.DEFINE_list("only", [], "Tasks to measure; all by default.")


def main() -> int:
    """Measure the cases; write figures and a plot after each. Skipped cases keep their older figures."""
    chosen = LARGE_CASES if _LARGE.value else CASES
    cases = [case for case in chosen if not _ONLY.value or case[0] in _ONLY.value]
    with contextlib.ExitStack() as stack:
        # An accelerator has room for all cases at once, and their compilations, which take minutes, use all
        # cores of the host.
        workers_by_case: list[dict[str, Side] | None] = [
            {side: stack.enter_context(_worker(side, *case[:2])) for side in NAMES} if _LARGE.value else None
            for case in cases
        ]
        deadline = time.monotonic() + _PATIENCE.value
        skipped = set()
        for case, workers in zip(cases, workers_by_case, strict=True):
            if workers and not all(worker.wait_until(deadline) for worker in workers.values()):
                print(f"{case[0]}, {case[1]} clips: not compiled in time, skipped", file=sys.stderr)
                for worker in workers.values():
                    worker.process.kill()
                skipped.add(case)
        for case, workers in zip(cases, workers_by_case, strict=True):
            if case not in skipped:
                task, clips, turns = case
                _save(_compare(task, clips, _TURNS.value or turns, workers))
    return 0


def _save(row: dict) -> None:
    device = row["device"]
    stem = Path(_OUT.value) / f"{device.replace(' ', '_').lower()}_{_DTYPE.value}"
    rows = _merge_older(stem.with_suffix(".json"), [row])
    result = {"device": device, "dtype": _DTYPE.value, "tasks": rows}
    write_text(stem.with_suffix(".json"), json.dumps(result, indent=2) + "\n")
    _plot(result, stem.with_suffix(".png"))
    print(_table(result))
    print(f"figures: {stem.with_suffix('.json')}, plot: {stem.with_suffix('.png')}", flush=True)


def _merge_older(path: Path, rows: list[dict]) -> list[dict]:
    """Return the rows together with the file's rows of other cases, in the order of the cases."""
    older = json.loads(path.read_text())["tasks"] if path.exists() else []
    by_case = {(row["task"], row["clips"]): row for row in [*older, *rows]}
    order = [(task, clips) for task, clips, _ in (*CASES, *LARGE_CASES)]
    return [by_case[case] for case in order if case in by_case]


class Side:
    """A worker process, `benchmarks.train_step_worker`. A thread reads its lines.

    Args:
      process: the process, with pipes for its input and output.
      command: its command line, for messages.
    """

    def __init__(self, process: subprocess.Popen, command: str):
        self.process, self.command = process, command
        self.lines: queue.Queue[str] = queue.Queue()
        self._first: dict | None = None
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def wait_until(self, deadline: float) -> bool:
        """Wait for the first answer; return whether it came by the deadline (monotonic clock)."""
        try:
            line = self.lines.get(timeout=max(deadline - time.monotonic(), 0.0))
        except queue.Empty:
            return False
        self._first = json.loads(line) if line else None
        return bool(line)

    def first_answer(self) -> dict:
        """Return the answer to the first run of the task, which compiles it."""
        if self._first is None:
            self._first = self._answer()
        return self._first

    def ask(self, word: str) -> dict:
        """Send a line and return the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> dict:
        """Close its input and return the last answer."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self._answer()

    def _answer(self) -> dict:
        line = self.lines.get()
        if not line:
            raise RuntimeError(f"{self.command} ended with {self.process.wait()}")
        return json.loads(line)


@contextlib.contextmanager
def _worker(side: str, task: str, clips: int) -> Iterator[Side]:
    command = [sys.executable, "-m", "benchmarks.train_step_worker", f"--side={side}", f"--task={task}"]
    command += [
        f"--batch={clips}",
        f"--dtype={_DTYPE.value}",
        f"--matmul_size={8192 if _LARGE.value else 4096}",
    ]
    # The arrays of all sides have to fit into one accelerator's memory.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Side(process, " ".join(command))
        finally:
            process.kill()


def _compare(task: str, clips: int, turns: int, running: dict[str, Side] | None) -> dict:
    """Return the figures of one case.

    Args:
      task: forward, train or sample.
      clips: clips per batch.
      turns: number of turns.
      running: workers of all sides, which then run in one session; None runs JAX and each other side in a
        session with new workers.
    """
    sides: dict[str, dict] = {}
    seconds: dict[str, list[float]] = {side: [] for side in NAMES}
    rates: dict[str, list[float]] = {side: [] for side in NAMES}
    ratios, flops, device = {}, 0.0, ""
    for names in [tuple(NAMES)] if running else [("jax", other) for other in OTHERS]:
        with contextlib.ExitStack() as stack:
            workers = running or {side: stack.enter_context(_worker(side, task, clips)) for side in names}
            first_answers = {side: worker.first_answer() for side, worker in workers.items()}
            flops, device = first_answers["jax"]["flops"], first_answers["jax"]["device"]
            times = {side: [] for side in names}
            # While the slowest side compiled, the others' memory may have gone cold.
            for worker in workers.values():
                worker.ask("run")
            for turn in range(turns):
                order = list(workers)[:: 1 if turn % 2 else -1]
                taken = {side: workers[side].ask("run")["seconds"] for side in order}
                for side in order:
                    times[side].append(taken[side])
                    rates[side].append(workers[side].ask("matmul")["rate"])
                print(
                    f"{task}, {clips} clips, turn {turn + 1} of {turns}: "
                    + ", ".join(f"{NAMES[side]} {taken[side]:.3f} s" for side in workers),
                    file=sys.stderr,
                    flush=True,
                )
            for side, worker in workers.items():
                seconds[side] += times[side]
                sides[side] = {
                    "first_seconds": first_answers[side]["first_seconds"],
                    "peak_bytes": worker.end()["peak_bytes"],
                }
            for other in names[1:]:
                quotients = np.divide(times["jax"], times[other])
                low, median, high = np.percentile(quotients, (25, 50, 75))
                ratios[other] = {"median": float(median), "low": float(low), "high": float(high)}
    # The rate of the fastest library shows what the machine can do.
    peak = max(float(np.median(side_rates)) for side_rates in rates.values())
    chip = device_spec(device)
    for side, row in sides.items():
        row["seconds"] = float(np.median(seconds[side]))
        row["clips_per_second"] = clips / row["seconds"]
        row["flops_per_second"] = flops / row["seconds"]
        row["matmul_share"] = row["flops_per_second"] / peak
        if chip:
            row["mfu"] = row["flops_per_second"] / chip.peak_flops
    return {
        "task": task,
        "clips": clips,
        "turns": turns,
        **header("train_step"),
        "device": device,
        "host": host(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "torch")},
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
        "flops": flops,
        "matmul_flops_per_second": peak,
        "sides": sides,
        "jax_to": ratios,
    }


def _table(result: dict) -> str:
    """Return a Markdown table."""
    share = "MFU" if "mfu" in result["tasks"][0]["sides"]["jax"] else "share of matmul"
    peak = max(row["matmul_flops_per_second"] for row in result["tasks"]) / 1e9
    columns = (
        f"task, clips, side, seconds, clips/s, GFLOP/s, {share}, peak GiB, first call, JAX / side".split(", ")
    )
    lines = [
        f"{result['device']}, {result['dtype']}, matmul {peak:.0f} GFLOP/s",
        "",
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
    ]
    for row in result["tasks"]:
        for name, side in row["sides"].items():
            ratio = row["jax_to"].get(name)
            cells = [
                row["task"],
                row["clips"],
                NAMES[name],
                f"{side['seconds']:.3f}",
                f"{side['clips_per_second']:.2f}",
                f"{side['flops_per_second'] / 1e9:.0f}",
                f"{100 * side.get('mfu', side['matmul_share']):.0f} %",
                f"{side['peak_bytes'] / 2**30:.2f}",
                f"{side['first_seconds']:.1f} s",
                f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})" if ratio else "",
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _plot(result: dict, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained", dpi=130)
    axes = figure.subplots()
    rows = result["tasks"]
    for index, (side, name) in enumerate(NAMES.items()):
        heights = [row["sides"][side]["seconds"] / row["sides"]["eager"]["seconds"] for row in rows]
        bars = axes.bar(np.arange(len(rows)) + 0.27 * (index - 1), heights, 0.25, label=name)
        axes.bar_label(bars, [f"{row['sides'][side]['seconds']:.3g} s" for row in rows], fontsize=7)
    axes.set_xticks(range(len(rows)), [f"{row['task']}, batch {row['clips']}" for row in rows])
    axes.set_ylabel("time, PyTorch eager = 1")
    axes.set_title(f"{result['device']}, {result['dtype']}")
    axes.set_ylim(0.0, 1.25)
    axes.legend(ncols=3, loc="upper center")
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


if __name__ == "__main__":
    run_main(main)
