"""Inputs, weights and outputs of the published PyTorch model in small sizes (see tests/golden/README.md)."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

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
    """Return all arrays of one file."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def settings(name: str) -> dict:
    """Return the settings stored in a file, parsed from JSON."""
    return json.loads(str(load(name)["config"]))


def state_dict(name: str) -> dict[str, np.ndarray]:
    """Return the weights by PyTorch name."""
    return {
        key.removeprefix("param/"): value for key, value in load(name).items() if key.startswith("param/")
    }


def time_first(array: np.ndarray) -> jax.Array:
    """Return (B, C, T), PyTorch's layout, as (B, T, C)."""
    return jnp.asarray(array).transpose(0, 2, 1)


def config(name: str) -> ModelConfig:
    """Return the configuration of a file's model."""
    stored = settings(name)
    return ModelConfig.from_torch_config({**stored["model"], "unshared": stored["unshared"]})


@functools.cache
def model(name: str) -> Flowley:
    """Return the model with a file's weights."""
    return flowley_from_torch(state_dict(name), config(name))


def conditions(name: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return video (B, Tv, video_dim), text (B, Tt, text_dim) and text_len (B,) of a file."""
    data = load(name)
    video, text, text_len = (
        jnp.asarray(data[f"in/{key}"]) for key in ("visual_feature", "text_feature", "text_len")
    )
    return video, text, text_len


def count_parameters(module: nnx.Module) -> int:
    """Return the number of numbers in a module's parameters, which may be shapes only."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def relative_error(value: Any, golden: Any) -> float:
    """Return max |value − golden| / max |golden|."""
    value, golden = np.asarray(value, np.float64), np.asarray(golden, np.float64)
    assert value.shape == golden.shape
    return float(np.abs(value - golden).max() / np.abs(golden).max())
