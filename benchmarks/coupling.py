"""Time the coupling of noise to latents against scipy's exact solver on the host.

Usage: python -m benchmarks.coupling

Inputs are independent normal numbers of the published latent's shape.
"""

import functools
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from scipy.optimize import linear_sum_assignment

from benchmarks.common import header, seconds_of
from benchmarks.jax_tasks import device
from flowley_jax.cli import run_main
from flowley_jax.common.files import write_text
from flowley_jax.flow.coupling import coupling_cost
from flowley_jax.kernels.auction import assign

# Groups, and latents per group.
SIZES = ((1, 64), (1, 256), (4, 256))
ROUNDS_PER_ITERATION = (1, 4, 8, 16)
REPEATS = 5

_OUT = flags.DEFINE_string("out", "benchmarks/results/coupling", "Folder to write the figures to.")


def main() -> int:
    """Measure every size, print each row, and write JSON."""
    rows = []
    for groups, size in SIZES:
        rows += _measure(groups, size)
    result = {
        "device": device(),
        **header("coupling"),
        "jax": version("jax"),
        "rows": rows,
    }
    path = Path(_OUT.value) / f"{device().replace(' ', '_').lower()}.json"
    write_text(path, json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")
    return 0


def _measure(groups: int, size: int) -> list[dict[str, Any]]:
    keys = jax.random.split(jax.random.key(size))
    data, noise = (jax.random.normal(key, (groups, size, 250, 20)) for key in keys)
    costs = jax.jit(jax.vmap(coupling_cost))(data, noise)
    host_costs = np.asarray(costs)
    started = time.perf_counter()
    exact = [linear_sum_assignment(matrix) for matrix in host_costs]
    exact_seconds = time.perf_counter() - started
    rows = []
    for rounds in ROUNDS_PER_ITERATION:
        program = jax.jit(functools.partial(assign, rounds_per_iteration=rounds))
        assigned = np.asarray(program(costs))
        seconds = min(seconds_of(functools.partial(_run, program, costs)) for _ in range(REPEATS))
        excess = [
            float(matrix[np.arange(size), columns].sum(dtype=np.float64) - matrix[best].sum(dtype=np.float64))
            for matrix, columns, best in zip(host_costs, assigned, exact, strict=True)
        ]
        row = {
            "groups": groups,
            "size": size,
            "rounds_per_iteration": rounds,
            "seconds": seconds,
            "scipy_seconds": exact_seconds,
            "excess": max(excess),
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def _run(program: Callable, costs: jax.Array) -> None:
    jax.block_until_ready(program(costs))


if __name__ == "__main__":
    run_main(main)
