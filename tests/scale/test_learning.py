"""Adapters alone learn."""

import dataclasses

import numpy as np
import pytest
import tiny
from flax import nnx

from flowley_jax.config import EmaConfig, LoraConfig, OptimConfig, StartConfig
from flowley_jax.interop import flowley_to_torch
from flowley_jax.interop.weight_files import write_arrays
from flowley_jax.model import Flowley
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
