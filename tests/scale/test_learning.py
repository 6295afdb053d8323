"""Options that change how a run learns: LoRA and bfloat16."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from flax import nnx

from flowley_jax.config import EmaConfig, LoraConfig, OptimConfig, StartConfig
from flowley_jax.interop import flowley_to_torch
from flowley_jax.interop.weight_files import write_arrays
from flowley_jax.model import Flowley
from flowley_jax.runs.snapshots import EmaSnapshots
from flowley_jax.training.loop import train
from flowley_jax.training.metrics import read_history

pytestmark = pytest.mark.scale


def test_lora_learns(tmp_path):
    records, weights = tiny.write_records(tmp_path / "records"), tmp_path / "new.safetensors"
    write_arrays(weights, flowley_to_torch(Flowley(tiny.MODEL, rngs=nnx.Rngs(0))), {})
    config = tiny.experiment(
        records,
        steps=60,
        start=StartConfig(weights=str(weights)),
        lora=LoraConfig(rank=4, alpha=4.0, layers=(".",)),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=5),
        ema=EmaConfig(snapshot_every=100),
    )
    seldom = dataclasses.replace(config.train, checkpoint_every=100, valid_every=100)
    train(dataclasses.replace(config, train=seldom), tmp_path / "run")
    losses = [row["train/loss"] for row in read_history(tmp_path / "run") if "train/loss" in row]
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:5])


def test_bfloat16_compute_keeps_float32_weights_and_close_losses(tmp_path):
    records = tiny.write_records(tmp_path / "records")
    exact = tiny.experiment(records, steps=2)
    config = dataclasses.replace(exact, model=dataclasses.replace(tiny.MODEL, dtype="bfloat16"))
    train(config, tmp_path / "bfloat16")
    train(exact, tmp_path / "float32")
    losses, expected = (
        [row["train/loss"] for row in read_history(tmp_path / run) if "train/loss" in row]
        for run in ("bfloat16", "float32")
    )
    assert losses == pytest.approx(expected, rel=1e-2)
    assert losses[1] != expected[1]
    shapes = tiny.abstract_state(config)
    with EmaSnapshots(tmp_path / "bfloat16") as snapshots:
        averaged = snapshots.synthesise(shapes.parameters, sigma_rels=(0.05, 0.1), sigma_rel=0.05)
    assert {leaf.dtype for leaf in jax.tree.leaves((averaged, shapes.parameters))} == {np.dtype("float32")}
