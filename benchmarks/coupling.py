"""Time of pairing noise with sound, beside scipy's exact solver on the host: python -m benchmarks.coupling

Inputs are independent normal numbers of the published latent's shape.
"""

import datetime
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from absl import flags
from scipy.optimize import linear_sum_assignment

from benchmarks.jax_tasks import device
from flowley_jax.cli import run_main
from flowley_jax.flow.coupling import coupling_cost
from flowley_jax.kernels import auction
from flowley_jax.whole_files import write_text

SIZES = ((1, 64), (1, 256), (4, 256))
ROUNDS_PER_ITERATION = (1, 4, 8, 16)
REPEATS = 5

_OUT = flags.DEFINE_string("out", "benchmarks/results/coupling", "Folder of the figures.")


def main() -> int:
    """Measures every size, prints each, and writes JSON."""
    rows = []
    for groups, size in SIZES:
        rows += _measure(groups, size)
    result = {
        "device": device(),
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m benchmarks.coupling", *sys.argv[1:]]),
        "jax": version("jax"),
        "rows": rows,
    }
    path = Path(_OUT.value) / f"{device().replace(' ', '_').lower()}.json"
    write_text(path, json.dumps(result, indent=2) + "\n")
    print(f"figures: {path}")
    return 0


def _measure(groups: int, size: int) -> list[dict]:
    keys = jax.random.split(jax.random.key(size))
    data, noise = (jax.random.normal(key, (groups, size, 250, 20)) for key in keys)
    costs = jax.jit(jax.vmap(coupling_cost))(data, noise)
    on_host = np.asarray(costs)
    started = time.perf_counter()
    best = [linear_sum_assignment(matrix) for matrix in on_host]
    exact_seconds = time.perf_counter() - started
    rows = []
    for count in ROUNDS_PER_ITERATION:
        auction.ROUNDS_PER_ITERATION = count
        # A function of its own, or the program for the count before would be taken.
        program = jax.jit(lambda costs: auction.assign(costs))
        chosen = np.asarray(program(costs))
        found = [_seconds(program, costs) for _ in range(REPEATS)]
        excess = [
            float(matrix[np.arange(size), row].sum(dtype=np.float64) - matrix[least].sum(dtype=np.float64))
            for matrix, row, least in zip(on_host, chosen, best, strict=True)
        ]
        row = {
            "groups": groups,
            "size": size,
            "rounds_per_iteration": count,
            "seconds": min(found),
            "scipy_seconds": exact_seconds,
            "excess": max(excess),
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def _seconds(program, costs) -> float:
    started = time.perf_counter()
    jax.block_until_ready(program(costs))
    return time.perf_counter() - started


if __name__ == "__main__":
    run_main(main)
