"""One process of tiny training runs, one after the other: worker.py JSON."""

import dataclasses
import json
import os
import sys
import traceback
from pathlib import Path

import jax
import numpy as np
import tiny
from absl import flags

from flowley_jax.config import ExperimentConfig, LoraConfig, MeshConfig, StartConfig
from flowley_jax.training import processes
from flowley_jax.training.checkpoint import RunCheckpoints
from flowley_jax.training.loop import train
from flowley_jax.training.optimizer import make_optimizer
from flowley_jax.training.sharding import make_layout, path_name
from flowley_jax.training.state import abstract_state


def main(job) -> None:
    """Joins the other processes, and trains or dumps."""
    if job["processes"] > 1:
        address = f"127.0.0.1:{job['port']}"
        processes.join(coordinator=address, count=job["processes"], index=job["process"])
    for run in job["runs"]:
        config, workdir = experiment(Path(job["records"]), run), Path(run["workdir"])
        if "dump" in run:
            dump_checkpoint(config, workdir, run["dump"])
        else:
            train(config, workdir)


def experiment(records: Path, run) -> ExperimentConfig:
    """A run with batches of eight, coupled in groups of four."""
    config = tiny.experiment(records, steps=run["steps"])
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=8, **run.get("data", {})),
        flow=dataclasses.replace(config.flow, coupling_group=4),
        optim=dataclasses.replace(config.optim, learning_rate=1e-3),
        ema=dataclasses.replace(config.ema, **run.get("ema", {})),
        lora=LoraConfig(**run.get("lora", {})),
        start=StartConfig(**run.get("start", {})),
        mesh=MeshConfig(**run.get("mesh", {})),
        model=dataclasses.replace(config.model, **run.get("model", {})),
        train=dataclasses.replace(config.train, **run.get("train", {})),
    )


def dump_checkpoint(config: ExperimentConfig, workdir: Path, path: str) -> None:
    """Restores the newest state onto the mesh and writes its leaves, whole, to an npz file."""
    layout = make_layout(config)
    _, shapes = abstract_state(config, make_optimizer(config.optim, config.train.steps), layout)
    with RunCheckpoints(workdir, keep=2) as checkpoints:
        restored, _ = checkpoints.restore(shapes)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == layout.of_state(restored)
    leaves = jax.tree.leaves_with_path(restored)
    np.savez(path, **{path_name(name): layout.on_host(leaf) for name, leaf in leaves})


# Grain's worker processes import this module again.
if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    try:
        main(json.loads(sys.argv[1]))
    except Exception:
        traceback.print_exc()
        # The usual end waits five minutes for the other processes, which wait for this one.
        os._exit(1)
