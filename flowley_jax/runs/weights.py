"""The weights that a run offers, the weights that a run starts from, and LoRA adapters in files."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowley_jax.common.trees import describe_leaves, differences, named_leaves
from flowley_jax.config import LoraConfig, StartConfig
from flowley_jax.errors import FlowleyError
from flowley_jax.interop import flowley_from_torch, flowley_to_torch
from flowley_jax.interop.weight_files import read_arrays, write_arrays
from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.model.flowley import Constant, abstract_model, merge_model
from flowley_jax.runs import lora
from flowley_jax.runs.snapshots import EmaSnapshots
from flowley_jax.runs.workdir import BASE, read_config

log = logging.getLogger(__name__)
_ADAPTER_NOTE = "flowley_jax.adapter"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """A network's configuration, its trained weights and its constants.

    Attributes:
      config: configuration of the network.
      parameters, constants: nnx.State of nnx.Param and of Constant.
      step: step of the snapshot that they come from; 0 for a file.
      adapters: LoRA adapters that the parameters already contain; empty without LoRA.
    """

    config: ModelConfig
    parameters: Any
    constants: Any
    step: int = 0
    adapters: lora.Adapters = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> Flowley:
        """The network with these weights."""
        return merge_model(self.config, self.parameters, self.constants)


def averaged_weights(workdir: Path, *, sigma_rel: float) -> Weights:
    """Return the weights of a run averaged with relative length `sigma_rel`, with LoRA merged.

    Raises:
      FlowleyError: the folder holds no run, the run has no snapshots yet, or a snapshot is damaged.
    """
    config = read_config(workdir)
    base = None
    _, like, constants = abstract_model(config.model)
    if config.lora.rank:
        base = read_weights(workdir / BASE, config.model).parameters
        like = jax.eval_shape(
            lambda weights: lora.new_adapters(weights, config.lora, jax.random.key(0)), base
        )
    with EmaSnapshots(workdir) as snapshots:
        trained = snapshots.synthesise(like, sigma_rels=config.ema.sigma_rels, sigma_rel=sigma_rel)
        constants = snapshots.constants(constants)
        step = snapshots.last_step
    if base is None:
        return Weights(config=config.model, parameters=trained, constants=constants, step=step)
    return Weights(
        config=config.model,
        parameters=lora.merged(base, trained, strength=config.lora.strength),
        constants=constants,
        step=step,
        adapters=trained,
    )


def read_weights(path: Path, config: ModelConfig) -> Weights:
    """Read weights under the published names (.safetensors, .pth).

    Raises:
      FlowleyError: the file cannot be read, or does not fit the configuration.
    """
    arrays, notes = read_arrays(path)
    if _ADAPTER_NOTE in notes:
        raise FlowleyError(
            f"{path}: holds LoRA adapters, not whole weights; `sample --adapter` adds them to the weights "
            "that they were trained on"
        )
    try:
        model = flowley_from_torch(arrays, config)
    except FlowleyError as error:
        raise FlowleyError(f"{path}: {error}") from error
    if model.config != config:
        raise FlowleyError(f"{path}: its single-stream blocks differ; set model.share_single=False")
    _, parameters, constants = nnx.split(model, nnx.Param, Constant)
    return Weights(config=config, parameters=parameters, constants=constants)


def starting_weights(start: StartConfig, config: ModelConfig) -> Weights:
    """Return the weights that `start.weights` names: a run's averages, or a file.

    Raises:
      FlowleyError: they cannot be read, or do not fit the network; every array that differs is listed.
    """
    path = Path(start.weights)
    if not path.is_dir():
        return read_weights(path, config)
    weights = averaged_weights(path, sigma_rel=start.sigma_rel)
    _, parameters, _ = abstract_model(config)
    lines = differences(
        describe_leaves(named_leaves(parameters)), describe_leaves(named_leaves(weights.parameters))
    )
    if lines:
        raise FlowleyError("\n".join([f"{path}: another network; {len(lines)} arrays differ:", *lines]))
    return weights


def write_weights(path: Path, weights: Weights, notes: Mapping[str, str]) -> None:
    """Write all weights under the published names, for `read_weights` and for PyTorch users."""
    write_arrays(path, flowley_to_torch(weights.model), notes)


def write_adapters(path: Path, adapters: lora.Adapters, config: LoraConfig) -> None:
    """Write LoRA adapters, for use on the weights that they were trained on."""
    arrays = {
        f"{layer}.{factor}": np.asarray(value)
        for layer, pair in adapters.items()
        for factor, value in pair.items()
    }
    write_arrays(path, arrays, {_ADAPTER_NOTE: json.dumps({"strength": config.strength})})


def with_adapters(weights: Weights, path: Path, *, factor: float) -> Weights:
    """Return weights with the adapters of a file added.

    Args:
      factor: 1 for the strength that they were trained with, 0 for no effect.

    Raises:
      FlowleyError: the file holds no adapters, or adapters of another network.
    """
    arrays, notes = read_arrays(path)
    if _ADAPTER_NOTE not in notes:
        raise FlowleyError(f"{path}: holds no LoRA adapters (flowley_jax.ema --adapter writes them)")
    adapters: dict[str, dict[str, Any]] = {}
    for name, value in arrays.items():
        layer, _, low_rank_factor = name.rpartition(".")
        adapters.setdefault(layer, {})[low_rank_factor] = jnp.asarray(value)
    strength = factor * json.loads(notes[_ADAPTER_NOTE])["strength"]
    try:
        parameters = lora.merged(weights.parameters, adapters, strength=strength)
    except FlowleyError as error:
        raise FlowleyError(f"{path}: {error}") from error
    return dataclasses.replace(weights, parameters=parameters, adapters=adapters)
