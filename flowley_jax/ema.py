"""Average a run's weights over any length, after training: python -m flowley_jax.ema --workdir DIR

Several `--sigma-rel` are compared by their validation loss; for a single one, `--out` writes the weights.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.common.files import check_new_file, name_errors
from flowley_jax.common.number_flags import define_floats
from flowley_jax.common.ranges import SIGMA_RELS
from flowley_jax.errors import FlowleyError

if TYPE_CHECKING:
    from flowley_jax.config import ExperimentConfig
    from flowley_jax.runs.weights import Weights

_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of a training run or of a shared model, or hf:ORG/NAME for one on the Hugging Face hub.",
    required=True,
)
_SIGMA_REL = define_floats(
    "sigma_rel",
    "Length of the average: its standard deviation as a share of the training so far (docs/training.md). May "
    "be given several times; by default the run's own tracks.",
    SIGMA_RELS,
)
_RECORDS = flags.DEFINE_string(
    "records", None, "Records to validate on, made with the run's codec; by default the run's own."
)
_VALIDATE = flags.DEFINE_bool(
    "validate", True, "Print the validation loss of each length, if the records have a valid split."
)
_OUT = flags.DEFINE_string("out", None, "File (.safetensors) for all weights, under the published names.")
_ADAPTER = flags.DEFINE_string("adapter", None, "File (.safetensors) for only the LoRA adapters.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the files of --out and --adapter if they exist.")


def main() -> int:
    """Print a line for each length, and write the files that were asked for."""
    from flowley_jax.runs.hub_models import local_folder
    from flowley_jax.runs.weights import averaged_weights, write_adapters, write_weights
    from flowley_jax.runs.workdir import read_config

    workdir = local_folder(_WORKDIR.value or "")
    config = read_config(workdir)
    lengths = _SIGMA_REL.value or list(config.ema.sigma_rels)
    if (_OUT.value or _ADAPTER.value) and len(lengths) > 1:
        given = f"{len(lengths)} are given" if _SIGMA_REL.value else "none is given"
        raise FlowleyError(f"--out and --adapter need exactly one --sigma-rel; {given}")
    if _ADAPTER.value and not config.lora.rank:
        raise FlowleyError(f"{workdir}: was trained without LoRA and has no adapters to write")
    _check_outputs()
    validation_loss = (
        _loss_on(config, workdir, Path(_RECORDS.value or config.data.records)) if _VALIDATE.value else None
    )
    for sigma_rel in lengths:
        weights = averaged_weights(workdir, sigma_rel=sigma_rel)
        line = f"sigma_rel {sigma_rel:g}, up to step {weights.step}"
        if validation_loss:
            line = f"{line}: validation loss {validation_loss(weights):.5f}"
        print(line, flush=True)
        notes = {"sigma_rel": str(sigma_rel), "step": str(weights.step)}
        if _OUT.value:
            write_weights(Path(_OUT.value), weights, notes)
            print(_OUT.value)
        if _ADAPTER.value:
            write_adapters(Path(_ADAPTER.value), weights, config.lora)
            print(_ADAPTER.value)
    return 0


def _check_outputs() -> None:
    paths = {"--out": _OUT.value, "--adapter": _ADAPTER.value}
    files = {option: Path(path) for option, path in paths.items() if path}
    if len(files) == 2 and len({path.resolve() for path in files.values()}) == 1:
        raise FlowleyError(f"--out and --adapter both name {_OUT.value}; they need two files")
    for option, path in files.items():
        if path.suffix.lower() != ".safetensors":
            raise FlowleyError(f"{option} {path}: must end in .safetensors")
        check_new_file(path, overwrite=_OVERWRITE.value, option=option)
        with name_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)


def _loss_on(config: "ExperimentConfig", workdir: Path, records: Path) -> "Callable[[Weights], float] | None":
    """Return the function from weights to their validation loss; None if there is nothing to validate on.

    Raises:
      FlowleyError: the records were made with another codec than the run's, or cannot be used at all although
        validation was asked for.
    """
    from flowley_jax.config import LoraConfig, MeshConfig
    from flowley_jax.data.components import Components
    from flowley_jax.data.record import has_records, has_split
    from flowley_jax.runs.weights import check_latent_space, latent_space_of
    from flowley_jax.training.sharding import make_layout
    from flowley_jax.training.state import StepConfig
    from flowley_jax.training.validation import validation_losses

    missing = None
    if not records.is_dir():
        missing = "no such folder"
    elif not has_records(records):
        missing = "holds no records"
    elif not has_split(records, "valid"):
        missing = "the records have no valid split"
    if missing and (_VALIDATE.present or _RECORDS.value):
        raise FlowleyError(f"{records}: {missing}; name other records by --records, or give --novalidate")
    if missing:
        print(f"no validation loss: {records}: {missing} (--records names others)", flush=True)
        return None
    check_latent_space(
        Components.load(records).latent_space,
        latent_space_of(workdir),
        what=f"{records}",
        where=f"{workdir}",
        hint="give the records of this run, or --novalidate",
    )
    # The adapters are merged by now, and this machine may not be the one that trained.
    config = dataclasses.replace(config, lora=LoraConfig(), mesh=MeshConfig())
    layout = make_layout(config.mesh, config.model, batch_size=config.data.batch_size)
    step_config = StepConfig.from_experiment(config)

    def loss(weights: "Weights") -> float:
        parameters, constants = layout.shard_weights((weights.parameters, weights.constants))
        losses = validation_losses(
            parameters,
            constants,
            records,
            config=step_config,
            layout=layout,
            batch_size=config.data.batch_size,
        )
        return losses["valid/loss"]

    return loss


if __name__ == "__main__":
    run_main(main)
