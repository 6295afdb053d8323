"""Inputs, weights and outputs of the published PyTorch model in small sizes (tests/golden/README.md)."""

import functools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from flowley_jax.interop import flowley_from_torch
from flowley_jax.model import Flowley, ModelConfig

FOLDER = Path(__file__).parent / "golden"
VARIANTS = (
    "a_shared",
    "b_unshared",
    "b_linear",
    "b_gaussian",
    "b_nofade_w2",
    "b_window_m1",
    "b_balance025",
    "b_dit",
)


@functools.cache
def load(name: str) -> dict[str, np.ndarray]:
    """All arrays of one file."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def settings(name: str) -> dict:
    """The file's own description, parsed."""
    return json.loads(str(load(name)["config"]))


def state_dict(name: str) -> dict[str, np.ndarray]:
    """Weights under their torch names."""
    return {
        key.removeprefix("param/"): value for key, value in load(name).items() if key.startswith("param/")
    }


@functools.cache
def model(name: str) -> Flowley:
    """The model with the file's weights."""
    described = settings(name)
    config = ModelConfig.from_torch_config({**described["model"], "unshared": described["unshared"]})
    return flowley_from_torch(state_dict(name), config)


def conditions(name: str):
    """video, text, text_len of a file."""
    data = load(name)
    return tuple(jnp.asarray(data[f"in/{key}"]) for key in ("visual_feature", "text_feature", "text_len"))


def relative_error(value, golden) -> float:
    """max |value − golden| / max |golden|."""
    value, golden = np.asarray(value, np.float64), np.asarray(golden, np.float64)
    assert value.shape == golden.shape
    return float(np.abs(value - golden).max() / np.abs(golden).max())
