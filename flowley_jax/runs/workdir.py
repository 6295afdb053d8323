"""The folder of a run: its configuration, and the components of its data set for the sampler."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from flowley_jax.common import distributed
from flowley_jax.common.files import write_text
from flowley_jax.common.json_files import read_json_object
from flowley_jax.common.locks import LOCK_FILE
from flowley_jax.config import ExperimentConfig, binding_values, experiment_from
from flowley_jax.data.components import Components, components_file
from flowley_jax.errors import FlowleyError

log = logging.getLogger(__name__)
CONFIG = "config.json"
COMPONENTS = "components"
# The weights of a shared model, whose folder takes the place of a run's folder; see `model_folder`.
MODEL = "model.safetensors"
# The weights that a run with LoRA adapts.
BASE = "base.safetensors"

# Keys in `config.json` of the identities of the run's components, and of the weights that LoRA adapts;
# earlier versions wrote none.
_IDENTITY = "components"
_BASE_IDENTITY = "base"
# The components folder of runs that earlier versions made.
_EARLIER_COMPONENTS = "parts"
# Folders whose members are named by their steps.
_STEP_FOLDERS = ("checkpoints", "ema", "damaged")
# What `train` may create before it claims the folder.
_CREATED_BEFORE = ("generated_records", LOCK_FILE)


def open_workdir(
    workdir: Path, config: ExperimentConfig, components: Components, records: Path, *, base_sha256: str = ""
) -> None:
    """Claim a folder for a run: store the configuration and the components in it.

    Collective: every process must call this; the first one checks and writes. A start that stored no step
    does not bind the folder: the next start replaces its files.

    Args:
      base_sha256: identity of the weights that a new run with LoRA adapts.

    Raises:
      FlowleyError: the folder's run has another configuration (the message lists every difference) or another
        data set, or is already beyond `train.steps`; or its configuration or components are missing, damaged
        or another run's; or the folder holds a file that no run wrote where this one would write. The folder
        is left as it is.
    """
    distributed.first_does(
        lambda: _claim(workdir, config, components, records, base_sha256),
        failure=f"{workdir}: refused by the first process",
    )


def _claim(
    workdir: Path, config: ExperimentConfig, components: Components, records: Path, base_sha256: str
) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / CONFIG
    if (workdir / MODEL).exists():
        raise FlowleyError(f"{workdir}: holds a shared model ({MODEL}), not a run; choose another folder")
    last_step = _last_stored_step(workdir)
    if last_step is not None:
        _check_same_run(workdir, config, components, records, last_step=last_step)
        base_sha256 = _read_stored(workdir).get(_BASE_IDENTITY, "")
    else:
        if path.exists():
            _check_earlier_start(workdir)
        else:
            _check_other_files(workdir)
        (workdir / BASE).unlink(missing_ok=True)
    write_config(workdir, config, components, base_sha256=base_sha256)
    folder = components_folder(workdir)
    if last_step is None or not components_file(folder).exists():
        components.save(folder)


def write_config(
    workdir: Path, config: ExperimentConfig, components: Components, *, base_sha256: str = ""
) -> None:
    """Write the configuration of a run, with the identities of what belongs to it.

    Args:
      base_sha256: identity of the weights that a run with LoRA adapts.
    """
    identities = {_IDENTITY: components.identity} | ({_BASE_IDENTITY: base_sha256} if base_sha256 else {})
    content = {**identities, **dataclasses.asdict(config)}
    write_text(workdir / CONFIG, json.dumps(content, indent=2) + "\n")


def read_config(workdir: Path) -> ExperimentConfig:
    """Return the configuration of the run in a folder.

    Raises:
      FlowleyError: the folder holds no run, or its configuration is damaged.
    """
    stored, identities = _read_stored(workdir), (_IDENTITY, _BASE_IDENTITY)
    return experiment_from({key: value for key, value in stored.items() if key not in identities})


def has_steps(workdir: Path) -> bool:
    """Return whether the folder holds a run that stored a step."""
    return _last_stored_step(workdir) is not None


def check_base(workdir: Path, base_sha256: str, source: object) -> None:
    """Check that weights are those that the run keeps frozen.

    Args:
      base_sha256: identity of the weights.
      source: where they were read, for the message.

    Raises:
      FlowleyError: the folder holds no run, or the run keeps other weights frozen.
    """
    if _read_stored(workdir).get(_BASE_IDENTITY, base_sha256) != base_sha256:
        raise FlowleyError(f"{source}: is not what {workdir} was trained on; put the run's own {BASE} back")


def load_components(workdir: Path) -> Components:
    """Return the components of the run in a folder.

    Raises:
      FlowleyError: the folder holds no run; or its components are missing, damaged or another run's.
    """
    folder = components_folder(workdir)
    remedy = (
        "put the run's own files there, or remove the folder and resume the run, which copies the records'"
    )
    if not components_file(folder).exists():
        raise FlowleyError(f"{folder}: the components of the run are missing; {remedy}")
    try:
        components = Components.load(folder)
    except FlowleyError as error:
        raise FlowleyError(f"{error}; {remedy}") from error
    model, dims = read_config(workdir).model, components.dims
    fits = all(getattr(model, name) == getattr(dims, name) for name in ("audio_dim", "video_dim", "text_dim"))
    if not fits or _read_stored(workdir).get(_IDENTITY, components.identity) != components.identity:
        raise FlowleyError(f"{folder}: belongs to another run, or was changed; {remedy}")
    return components


def components_folder(workdir: Path) -> Path:
    """Return the folder of a run's components, under the name that this or an earlier version gave it."""
    earlier = workdir / _EARLIER_COMPONENTS
    return earlier if earlier.is_dir() else workdir / COMPONENTS


def _check_same_run(
    workdir: Path, config: ExperimentConfig, components: Components, records: Path, *, last_step: int
) -> None:
    if last_step > config.train.steps:
        raise FlowleyError(
            f"{workdir} is already at step {last_step}, beyond train.steps={config.train.steps}; raise "
            "train.steps, or choose another folder"
        )
    if not (workdir / CONFIG).exists():
        raise FlowleyError(
            f"{workdir}: has stored steps but no {CONFIG}, which says how they were made; put it back, or "
            "choose another folder"
        )
    _check_components(workdir, components, records)
    _check_same_config(workdir, read_config(workdir), config)


def _check_components(workdir: Path, components: Components, records: Path) -> None:
    """Check that records and components belong to the run, by their content and not by their paths."""
    expected = _read_stored(workdir).get(_IDENTITY)
    present = components_file(components_folder(workdir)).exists()
    if expected == components.identity:
        # Missing components are copied from the records, which are the run's.
        if present:
            load_components(workdir)
        return
    if expected is None and not present:
        return
    try:
        differences = load_components(workdir).differences(components)
    except FlowleyError:
        if expected is None:
            raise
        differences = ["other components"]
    if differences:
        raise FlowleyError(
            f"{records}: not the data set that {workdir} was trained on ({'; '.join(differences)})"
        )


def _check_same_config(workdir: Path, stored: ExperimentConfig, config: ExperimentConfig) -> None:
    before, now = binding_values(stored), binding_values(config)
    changed = [f"{key} was {before[key]!r}, is now {now[key]!r}" for key in now if before[key] != now[key]]
    if changed:
        raise FlowleyError(
            f"{workdir}: holds a run of another configuration (choose another folder, or change back): "
            + "; ".join(changed)
        )
    if stored.train.steps != config.train.steps:
        depending = [
            what
            for what, depends in (
                ("the learning rate", config.optim.schedule == "cosine"),
                ("α of the flow map", config.flow.map.enabled),
            )
            if depends
        ]
        if depending:
            log.warning(
                "train.steps was %d and is now %d: from here on, this changes %s",
                *(stored.train.steps, config.train.steps, " and ".join(depending)),
            )


def _read_stored(workdir: Path) -> dict[str, Any]:
    path = workdir / CONFIG
    if not path.exists():
        raise FlowleyError(f"{workdir}: no training run here ({CONFIG} is missing)")
    return read_json_object(path)


def _last_stored_step(workdir: Path) -> int | None:
    """Return the last step of which a file is stored, intact or damaged; None if there is none."""
    names = [path.name.split("_")[0] for folder in _STEP_FOLDERS for path in (workdir / folder).glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=None)


def _check_earlier_start(workdir: Path) -> None:
    """Refuse a folder whose `config.json` another program wrote."""
    try:
        read_config(workdir)
    except FlowleyError as error:
        raise FlowleyError(
            f"{workdir / CONFIG}: is not the configuration of a run ({error}); choose another folder"
        ) from error


def _check_other_files(workdir: Path) -> None:
    """Refuse a folder without a run if a run would replace files in it; log other files."""
    for name in (BASE, COMPONENTS, *_STEP_FOLDERS):
        if (workdir / name).exists():
            raise FlowleyError(
                f"{workdir / name}: exists, but no run is in this folder; choose another folder"
            )
    others = sorted(path.name for path in workdir.iterdir() if path.name not in _CREATED_BEFORE)
    if others:
        log.warning("%s already contains %d other files, such as %s", workdir, len(others), others[0])
