"""The weights that a finished, or unfinished, run has to offer, and those that a run begins with."""

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

from flowley_jax.config import ExperimentConfig, LoraConfig
from flowley_jax.errors import FlowleyError
from flowley_jax.interop import flowley_from_torch, flowley_to_torch
from flowley_jax.interop.weight_files import read_arrays, write_arrays
from flowley_jax.model import Flowley, ModelConfig
from flowley_jax.model.flowley import Constant
from flowley_jax.training import lora
from flowley_jax.training.checkpoint import EmaSnapshots
from flowley_jax.training.workdir import BASE, read_config

log = logging.getLogger(__name__)
_ADAPTER_NOTE = "flowley_jax.adapter"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """A model, split: structure, trained weights, constants.

    Attributes:
      step: of the snapshot they come from; 0 for a file.
      adapters: what LoRA learned, which the weights contain; empty without.
    """

    graphdef: nnx.GraphDef
    parameters: Any
    constants: Any
    step: int = 0
    adapters: lora.Adapters = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> Flowley:
        """The network with these weights."""
        return nnx.merge(self.graphdef, self.parameters, self.constants)


def averaged_weights(workdir: Path, *, sigma_rel: float) -> Weights:
    """Weights of a run averaged with relative length `sigma_rel`, LoRA merged.

    Raises:
      FlowleyError: there is no run in the folder, it has no averages yet, or a file of them is damaged.
    """
    config = read_config(workdir)
    base = read_weights(workdir / BASE, config.model) if config.lora.rank else _abstract(config.model)
    adapters = (
        jax.eval_shape(lambda: lora.new_adapters(base.parameters, config.lora, jax.random.key(0)))
        if config.lora.rank
        else {}
    )
    with EmaSnapshots(workdir) as snapshots:
        trained = snapshots.synthesise(
            adapters or base.parameters, sigma_rels=config.ema.sigma_rels, sigma_rel=sigma_rel
        )
        constants = snapshots.constants(base.constants)
        step = snapshots.last_step
    if config.lora.rank:
        weights = lora.merged(base.parameters, trained, strength=config.lora.strength)
        return Weights(
            graphdef=base.graphdef, parameters=weights, constants=constants, step=step, adapters=trained
        )
    return Weights(graphdef=base.graphdef, parameters=trained, constants=constants, step=step)


def read_weights(path: Path, config: ModelConfig) -> Weights:
    """Weights from a file under the published names.

    Raises:
      FlowleyError: the file cannot be read, or does not fit the configuration.
    """
    arrays, notes = read_arrays(path)
    if _ADAPTER_NOTE in notes:
        raise FlowleyError(
            f"{path}: holds LoRA adapters, no whole weights; sample --adapter adds them to those they were "
            "made for"
        )
    try:
        model = flowley_from_torch(arrays, config)
    except FlowleyError as error:
        raise FlowleyError(f"{path}: {error}") from error
    if model.config != config:
        raise FlowleyError(f"{path}: its single-stream blocks differ; set model.share_single=False")
    graphdef, parameters, constants = nnx.split(model, nnx.Param, Constant)
    return Weights(graphdef=graphdef, parameters=parameters, constants=constants)


def starting_weights(config: ExperimentConfig) -> Weights:
    """What `config.start` names: a training folder, or a file.

    Raises:
      FlowleyError: it cannot be read, or does not fit the model; differing arrays are listed.
    """
    path = Path(config.start.weights)
    if not path.is_dir():
        return read_weights(path, config.model)
    found = averaged_weights(path, sigma_rel=config.start.sigma_rel)
    here, there = _shapes(_abstract(config.model).parameters), _shapes(found.parameters)
    wrong = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    if wrong:
        lines = [
            f"  {name}: {there.get(name, 'missing')} there, {here.get(name, 'unknown')} here"
            for name in wrong
        ]
        raise FlowleyError("\n".join([f"{path}: another network; {len(wrong)} arrays differ:", *lines]))
    return found


def write_weights(path: Path, weights: Weights, notes: Mapping[str, str]) -> None:
    """Writes all weights under the published names, which `read_weights` and PyTorch users read."""
    write_arrays(path, flowley_to_torch(weights.model), notes)


def write_adapters(path: Path, adapters: lora.Adapters, config: LoraConfig) -> None:
    """Writes what LoRA learned, for use on the weights it was trained on."""
    arrays = {
        f"{layer}.{part}": np.asarray(value)
        for layer, pair in adapters.items()
        for part, value in pair.items()
    }
    write_arrays(path, arrays, {_ADAPTER_NOTE: json.dumps({"strength": config.strength})})


def with_adapters(weights: Weights, path: Path, *, factor: float) -> Weights:
    """Weights with the adapters of a file added.

    Args:
      factor: 1 for the effect they were trained for, 0 for none.

    Raises:
      FlowleyError: no file of adapters, or made for another network.
    """
    arrays, notes = read_arrays(path)
    if _ADAPTER_NOTE not in notes:
        raise FlowleyError(f"{path}: holds no LoRA adapters (flowley_jax.ema --adapter writes them)")
    adapters: dict[str, dict[str, Any]] = {}
    for name, value in arrays.items():
        layer, _, part = name.rpartition(".")
        adapters.setdefault(layer, {})[part] = jnp.asarray(value)
    strength = factor * json.loads(notes[_ADAPTER_NOTE])["strength"]
    try:
        parameters = lora.merged(weights.parameters, adapters, strength=strength)
    except FlowleyError as error:
        raise FlowleyError(f"{path}: {error}") from error
    return dataclasses.replace(weights, parameters=parameters, adapters=adapters)


def _abstract(config: ModelConfig) -> Weights:
    model = nnx.eval_shape(lambda: Flowley(config, rngs=nnx.Rngs(0)))
    graphdef, parameters, constants = nnx.split(model, nnx.Param, Constant)
    return Weights(graphdef=graphdef, parameters=parameters, constants=constants)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}
