"""The folder of a run: its configuration, and the components of its data set for the sampler."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from flowley_jax.common import distributed
from flowley_jax.common.files import write_text
from flowley_jax.config import ExperimentConfig, binding_values, experiment_from
from flowley_jax.data.components import Components, components_file
from flowley_jax.errors import FlowleyError

log = logging.getLogger(__name__)
CONFIG = "config.json"
COMPONENTS = "components"
# The weights that a run with LoRA adapts.
BASE = "base.safetensors"

# The components folder of runs that earlier versions made.
_EARLIER_COMPONENTS = "parts"
# Folders whose members are named by their steps.
_STEP_FOLDERS = ("checkpoints", "ema", "damaged")
# What `train` may create before it claims the folder.
_CREATED_BEFORE = ("generated_records",)


def open_workdir(workdir: Path, config: ExperimentConfig, components: Components, records: Path) -> None:
    """Claim a folder for a run: store the configuration and the components in it.

    Collective: every process must call this; the first one writes. A start that stored no step does not
    bind the folder: the next start replaces its files.

    Raises:
      FlowleyError: the folder's run has another configuration (the message lists every difference) or another
        data set, or is already beyond `train.steps`. The folder is left as it is.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / CONFIG
    last_step = _last_stored_step(workdir)
    if last_step is not None:
        _check_same_run(workdir, config, records, last_step=last_step)
    elif not path.exists():
        _log_other_files(workdir)
    # No process may read what another one writes.
    distributed.wait_for_all("workdir checked")
    if distributed.is_first():
        if last_step is None:
            (workdir / BASE).unlink(missing_ok=True)
        write_text(path, json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        folder = components_folder(workdir)
        if last_step is None or not components_file(folder).exists():
            components.save(folder)
    distributed.wait_for_all("workdir written")


def read_config(workdir: Path) -> ExperimentConfig:
    """Return the configuration of the run in a folder.

    Raises:
      FlowleyError: the folder holds no run, or its configuration is damaged.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise FlowleyError(f"{workdir}: no training run here ({CONFIG} is missing)")
    return experiment_from(_read_json(path))


def components_folder(workdir: Path) -> Path:
    """Return the folder of a run's components, under the name that this or an earlier version gave it."""
    earlier = workdir / _EARLIER_COMPONENTS
    return earlier if earlier.is_dir() else workdir / COMPONENTS


def _check_same_run(workdir: Path, config: ExperimentConfig, records: Path, *, last_step: int) -> None:
    if last_step > config.train.steps:
        raise FlowleyError(
            f"{workdir} is already at step {last_step}, beyond train.steps={config.train.steps}; raise "
            "train.steps, or choose another folder"
        )
    if (workdir / CONFIG).exists():
        _check_same_config(workdir, read_config(workdir), config)
    stored = components_file(components_folder(workdir))
    if stored.exists() and _read_json(stored) != _read_json(components_file(records)):
        raise FlowleyError(f"{records}: not the data set that {workdir} was trained on")


def _check_same_config(workdir: Path, stored: ExperimentConfig, config: ExperimentConfig) -> None:
    before, now = binding_values(stored), binding_values(config)
    changed = [f"{key} was {before[key]!r}, is now {now[key]!r}" for key in now if before[key] != now[key]]
    if changed:
        raise FlowleyError(
            f"{workdir}: holds a run of another configuration (choose another folder, or change back): "
            + "; ".join(changed)
        )
    if config.optim.schedule == "cosine" and stored.train.steps != config.train.steps:
        log.warning(
            "train.steps was %d and is now %d: the learning rate follows a different cosine from here on",
            stored.train.steps,
            config.train.steps,
        )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise FlowleyError(f"{path}: not valid JSON: {error}") from error


def _last_stored_step(workdir: Path) -> int | None:
    """Return the last step of which a file is stored, intact or damaged; None if there is none."""
    names = [path.name.split("_")[0] for folder in _STEP_FOLDERS for path in (workdir / folder).glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=None)


def _log_other_files(workdir: Path) -> None:
    others = sorted(path.name for path in workdir.iterdir() if path.name not in _CREATED_BEFORE)
    if others and distributed.is_first():
        log.warning("%s already contains %d other files, such as %s", workdir, len(others), others[0])
