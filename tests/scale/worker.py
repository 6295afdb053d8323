"""Run tiny training runs one after another in one process: worker.py JSON."""

import dataclasses
import errno
import json
import os
import sys
import traceback
from pathlib import Path

import jax
import numpy as np
import tiny
from absl import flags

from flowley_jax.common import distributed
from flowley_jax.common.trees import named_leaves
from flowley_jax.config import ExperimentConfig, LoraConfig, MeshConfig, StartConfig
from flowley_jax.evaluation.during_training import train
from flowley_jax.flow.losses import LossConfig
from flowley_jax.runs.stored_trees import reading
from flowley_jax.training import checkpoint
from flowley_jax.training.checkpoint import RunCheckpoints


def main(job) -> None:
    """Connect to the other processes, and train or dump."""
    if job["processes"] > 1:
        address = f"127.0.0.1:{job['port']}"
        distributed.initialize(coordinator=address, count=job["processes"], index=job["process"])
    for run in job["runs"]:
        config, workdir = experiment(Path(job["records"]), run), Path(run["workdir"])
        if "dump" in run:
            dump_checkpoint(config, workdir, run["dump"])
        else:
            if run.get("failing", {}).get("process") == job["process"]:
                fail_reads(run["failing"]["reads"])
            train(config, workdir)


def experiment(records: Path, run) -> ExperimentConfig:
    """Return a run with batches of eight that are coupled in groups of four."""
    config = tiny.experiment(records, steps=run["steps"])
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=8, **run.get("data", {})),
        flow=dataclasses.replace(config.flow, coupling_group=4, loss=LossConfig(**run.get("loss", {}))),
        optim=dataclasses.replace(config.optim, learning_rate=1e-3, **run.get("optim", {})),
        ema=dataclasses.replace(config.ema, **run.get("ema", {})),
        lora=LoraConfig(**run.get("lora", {})),
        start=StartConfig(**run.get("start", {})),
        mesh=MeshConfig(**run.get("mesh", {})),
        model=dataclasses.replace(config.model, **run.get("model", {})),
        train=dataclasses.replace(config.train, **run.get("train", {})),
    )


def fail_reads(count: int) -> None:
    """Let the disk of this process fail in its first `count` reads of arrays."""
    read_arrays, failures = checkpoint.read_arrays, iter(range(count))

    def failing(checkpointer, step, *args):
        if next(failures, None) is None:
            return read_arrays(checkpointer, step, *args)
        # The read itself counts in every process.
        read_arrays(checkpointer, step, *args)
        with reading(checkpointer, step):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    checkpoint.read_arrays = failing


def dump_checkpoint(config: ExperimentConfig, workdir: Path, path: str) -> None:
    """Restore the newest state onto the mesh, and write its leaves, whole, to an npz file."""
    layout = tiny.layout(config)
    with RunCheckpoints(workdir, keep=2) as checkpoints:
        restored, _ = checkpoints.restore(tiny.abstract_state(config))
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == layout.state_shardings(restored)
    np.savez(path, **{name: layout.to_host(leaf) for name, leaf in named_leaves(restored).items()})


# Grain's worker processes import this module again.
if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    try:
        main(json.loads(sys.argv[1]))
    except Exception:
        traceback.print_exc()
        # A normal exit waits five minutes for the other processes, which wait for this one.
        os._exit(1)
