"""The folder of a run: its configuration, and the parts of its data set for the sampler."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from flowley_jax.config import ExperimentConfig, experiment_from
from flowley_jax.data.parts import PARTS_FILE, Parts
from flowley_jax.errors import FlowleyError
from flowley_jax.training import processes
from flowley_jax.whole_files import write_text

log = logging.getLogger(__name__)
CONFIG = "config.json"
PARTS = "parts"
# What a run with LoRA adapts.
BASE = "base.safetensors"

# Folders whose members are named by their steps.
_STORED = ("checkpoints", "ema", "damaged")
# What a start makes before the configuration.
_BEFORE_A_RUN = ("generated_records",)
# What may change between two starts of one run without changing what it computes.
_FREE = (
    "mesh.",
    "train.",
    "data.records",
    "data.num_workers",
    "data.generate",
    "data.latent_rate",
    "model.psca_implementation",
    "model.attention_implementation",
    "model.layers",
    "model.remat",
    "sample.",
)


def open_workdir(workdir: Path, config: ExperimentConfig, parts: Parts, records: Path) -> None:
    """Makes the folder and keeps the configuration and the data set's parts in it; one process writes.

    A start that stored nothing binds nothing: what it left is replaced.

    Raises:
      FlowleyError: the folder holds a run of another configuration, with every difference listed, of another
        data set, or beyond its last step already; it is left as it is.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path, kept = workdir / CONFIG, workdir / PARTS / PARTS_FILE
    reached = _reached(workdir)
    if reached is not None and reached > config.train.steps:
        raise FlowleyError(
            f"{workdir}: is at step {reached} already, beyond train.steps={config.train.steps}; give more "
            "steps, or another folder"
        )
    if path.exists() and reached is not None:
        before = read_config(workdir)
        stored, wanted = _binding(before), _binding(config)
        changed = [
            f"{key} is {stored[key]!r} there, {wanted[key]!r} here"
            for key in wanted
            if stored[key] != wanted[key]
        ]
        if changed:
            raise FlowleyError(
                f"{workdir}: holds a run of another configuration (take another folder, or change back): "
                + "; ".join(changed)
            )
        if config.optim.schedule == "cosine" and before.train.steps != config.train.steps:
            log.warning(
                "train.steps was %d and is %d now: the learning rate follows another cosine from here on",
                before.train.steps,
                config.train.steps,
            )
    elif not path.exists():
        _tell_of_strangers(workdir)
    if reached is not None and kept.exists() and kept.read_text() != (records / PARTS_FILE).read_text():
        raise FlowleyError(f"{records}: is another data set than {workdir} was trained on")
    # No process may read what another one writes.
    processes.wait_for_all("workdir checked")
    if processes.is_first():
        if reached is None:
            (workdir / BASE).unlink(missing_ok=True)
        write_text(path, _dump(config))
        parts.save(workdir / PARTS)
    processes.wait_for_all("workdir written")


def _reached(workdir: Path) -> int | None:
    """The newest step of which anything is stored, whole or damaged."""
    names = [path.name.split("_")[0] for folder in _STORED for path in (workdir / folder).glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=None)


def _tell_of_strangers(workdir: Path) -> None:
    others = sorted(path.name for path in workdir.iterdir() if path.name not in _BEFORE_A_RUN)
    if others and processes.is_first():
        log.warning("%s already has %d other files, such as %s", workdir, len(others), others[0])


def read_config(workdir: Path) -> ExperimentConfig:
    """The configuration of the run in a folder.

    Raises:
      FlowleyError: there is no run in the folder, or its file is damaged.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise FlowleyError(f"{workdir}: no training run here ({CONFIG} is missing)")
    try:
        return experiment_from(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise FlowleyError(f"{path}: not valid JSON: {error}") from error


def _binding(config: ExperimentConfig) -> dict[str, Any]:
    """Values by dotted name, of what must not change within a run."""
    flat = _flat(dataclasses.asdict(config))
    return {key: flat[key] for key in sorted(flat) if not key.startswith(_FREE)}


def _dump(config: ExperimentConfig) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
