"""Compiles the published training step for four TPU slices: python -m benchmarks.compile_table

Needs libtpu on the path and no TPU; `make compile-table` sees to both. A topology that is done already is
not compiled again.
"""

import dataclasses
import json
import sys
from pathlib import Path

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.config import DataConfig, ExperimentConfig, MeshConfig
from flowley_jax.model import ModelConfig
from flowley_jax.training.ahead import Estimate, compile_step
from flowley_jax.whole_files import write_text

MFU = 0.4
STEPS = 300_000
# The published batch is 512; 256 chips want more.
SLICES = {
    "v5e-16": ("v5e:4x4", 512, MeshConfig(data=1, fsdp=16)),
    "v5e-256": ("v5e:16x16", 2048, MeshConfig(data=16, fsdp=16)),
    "v5p-64": ("v5p:2x4x4", 512, MeshConfig(data=-1)),
    "v6e-16": ("v6e:4x4", 512, MeshConfig(data=-1)),
}

_OUT = flags.DEFINE_string("out", "benchmarks/results/compile", "Folder of the figures.")


def main() -> int:
    """Compiles what is missing, and writes the table."""
    out = Path(_OUT.value)
    for name, (topology, batch, mesh) in SLICES.items():
        path = out / f"{name}.json"
        if not path.exists():
            print(f"compiling for {name}, some minutes", file=sys.stderr, flush=True)
            config = ExperimentConfig(
                model=ModelConfig(dtype="bfloat16"), data=DataConfig(batch_size=batch), mesh=mesh
            )
            estimate = compile_step(config, topology, slices=1, mfu=MFU)
            write_text(path, json.dumps(dataclasses.asdict(estimate), indent=2) + "\n")
    rows = {name: Estimate(**json.loads((out / f"{name}.json").read_text())) for name in SLICES}
    text = _table(rows)
    write_text(out / "table.md", text)
    print(text)
    return 0


def _table(rows: dict[str, Estimate]) -> str:
    lines = [
        "| slice | chips | mesh | clips | state, GiB | in all | FLOPs | exchange, MiB | step | chip-hours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        state = sum(row.memory[kind] for kind in ("parameters", "optimiser", "averages"))
        mesh = " × ".join(f"{axis} {size}" for axis, size in row.mesh.items() if size > 1)
        exchange = sum(size for _, size in row.exchanges.values())
        hours = row.step_seconds * STEPS / 3600 * row.devices
        lines.append(
            f"| {name} | {row.devices} | {mesh} | {row.clips} | {state / 2**30:.2f} | "
            f"{sum(row.memory.values()) / 2**30:.1f} of {row.chip_memory / 2**30:.0f} | {row.flops:.2e} | "
            f"{exchange / 2**20:,.0f} | {1e3 * row.step_seconds:.0f} ms | {hours:,.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_main(main)
