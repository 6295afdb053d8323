"""Compile the training step of every size for TPU slices, and tabulate its cost: make compile-table

It needs libtpu but no TPU; the make target installs libtpu. Cases that already have a result are skipped.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
from absl import flags

from configs.vggsound import get_config
from flowley_jax.aot.estimate import Estimate
from flowley_jax.aot.train import compile_step
from flowley_jax.cli import run_main
from flowley_jax.common.files import write_text
from flowley_jax.config import experiment_from

MFU = 0.4
STEPS = 300_000
TOPOLOGIES = {"v5e-16": "v5e:4x4", "v5e-256": "v5e:16x16", "v5p-64": "v5p:2x4x4", "v6e-16": "v6e:4x4"}
# Options of configs/vggsound.py; the slice comes last.
CASES = (
    "base,16k,v5e-16",
    "base,16k,v5e-256",
    "base,16k,v5p-64",
    "base,16k,v6e-16",
    "base,44k,v5e-16",
    "large,16k,v6e-16",
    "large,44k,v6e-16",
    "xl,16k,v5p-64",
    "xl,44k,v5p-64",
)

_OUT = flags.DEFINE_string("out", "benchmarks/results/compile", "Folder for the figures and the table.")


def main() -> int:
    """Compile the missing cases; write the table again after each."""
    out = Path(_OUT.value)
    rows, text = {}, ""
    for case in CASES:
        path = out / f"{case.replace(',', '_')}.json"
        config = experiment_from(get_config(case).to_dict())
        if not path.exists():
            print(f"compiling {case}; this takes minutes", file=sys.stderr, flush=True)
            estimate = compile_step(config, TOPOLOGIES[case.split(",")[-1]], slices=1, mfu=MFU)
            write_text(path, json.dumps(dataclasses.asdict(estimate), indent=2) + "\n")
            # Each compiled program holds gigabytes of the host's memory.
            jax.clear_caches()
        rows[case] = (Estimate(**json.loads(path.read_text())), config.model.remat)
        text = _table(rows)
        write_text(out / "table.md", text)
    print(text)
    return 0


def _table(rows: dict[str, tuple[Estimate, str]]) -> str:
    lines = [
        "| options | chips | mesh | remat | clips | state, GiB | total, GiB | FLOPs "
        "| collectives, MiB | step | chip-hours |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, (row, remat) in rows.items():
        state = sum(row.memory[kind] for kind in ("parameters", "optimiser", "averages"))
        mesh = " × ".join(f"{axis} {size}" for axis, size in row.mesh.items() if size > 1)
        collectives = sum(size for _, size in row.collectives.values())
        hours = row.step_seconds * STEPS / 3600 * row.devices
        lines.append(
            f"| `{case}` | {row.devices} | {mesh} | {remat} | {row.clips} | {state / 2**30:.2f} | "
            f"{sum(row.memory.values()) / 2**30:.1f} of {row.device_memory / 2**30:.0f} | {row.flops:.2e} | "
            f"{collectives / 2**20:,.0f} | {1e3 * row.step_seconds:.0f} ms | {hours:,.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_main(main)
