"""The folder of a run: its configuration, and the parts of its data set for the sampler."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from flowley_jax.config import ExperimentConfig, experiment_from
from flowley_jax.data.parts import PARTS_FILE, Parts
from flowley_jax.errors import FlowleyError
from flowley_jax.whole_files import write_text

CONFIG = "config.json"
PARTS = "parts"

# What may change between two starts of one run without changing what it computes.
_FREE = ("train.", "data.records", "data.num_workers", "data.generate", "sample.")


def open_workdir(workdir: Path, config: ExperimentConfig) -> None:
    """Makes the folder, or checks that its run has this configuration.

    Raises:
      FlowleyError: the folder holds a run of another configuration; every difference is listed.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / CONFIG
    if path.exists():
        stored, wanted = _binding(read_config(workdir)), _binding(config)
        changed = [
            f"{key} is {stored[key]!r} there, {wanted[key]!r} here"
            for key in wanted
            if stored[key] != wanted[key]
        ]
        if changed:
            raise FlowleyError(f"{workdir}: holds a run of another configuration: {'; '.join(changed)}")
    write_text(path, _dump(config))


def keep_parts(workdir: Path, parts: Parts, records: Path) -> None:
    """Copies the data set's parts into the run's folder.

    Raises:
      FlowleyError: the run was started on another data set.
    """
    folder = workdir / PARTS
    kept = folder / PARTS_FILE
    if kept.exists() and kept.read_text() != (records / PARTS_FILE).read_text():
        raise FlowleyError(f"{records}: is another data set than {workdir} was trained on")
    parts.save(folder)


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


def run_digest(config: ExperimentConfig) -> str:
    """Names the run: equal for configurations that `open_workdir` takes for the same one."""
    return hashlib.sha256(json.dumps(_binding(config)).encode()).hexdigest()[:16]


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
