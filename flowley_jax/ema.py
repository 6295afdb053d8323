"""Average a run's weights over any length, after training: python -m flowley_jax.ema --workdir DIR

Several `--sigma-rel` are compared by their validation loss; for a single one, `--out` writes the weights.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.common.files import name_errors
from flowley_jax.errors import FlowleyError

if TYPE_CHECKING:
    from flowley_jax.config import ExperimentConfig
    from flowley_jax.runs.weights import Weights

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
_SIGMA_REL = flags.DEFINE_multi_float(
    "sigma_rel",
    None,
    "Length of the average: its standard deviation as a share of the training so far, between 0 and 0.288 "
    "(docs/training.md). May be given several times; by default the run's own tracks.",
)
_RECORDS = flags.DEFINE_string("records", None, "Records to validate on; by default the run's own.")
_VALIDATE = flags.DEFINE_bool(
    "validate", True, "Print the validation loss of each length, if the records have a valid split."
)
_OUT = flags.DEFINE_string("out", None, "File (.safetensors) for all weights, under the published names.")
_ADAPTER = flags.DEFINE_string("adapter", None, "File (.safetensors) for only the LoRA adapters.")


def main() -> int:
    """Print a line for each length, and write the files that were asked for."""
    from flowley_jax.runs.weights import averaged_weights, write_adapters, write_weights
    from flowley_jax.runs.workdir import read_config

    workdir = Path(_WORKDIR.value)
    config = read_config(workdir)
    lengths = _SIGMA_REL.value or list(config.ema.sigma_rels)
    for sigma_rel in lengths:
        # Constructing the configuration checks the value.
        dataclasses.replace(config.sample, sigma_rel=sigma_rel)
    if (_OUT.value or _ADAPTER.value) and len(lengths) > 1:
        given = f"{len(lengths)} are given" if _SIGMA_REL.value else "none is given"
        raise FlowleyError(f"--out and --adapter need exactly one --sigma-rel; {given}")
    if _ADAPTER.value and not config.lora.rank:
        raise FlowleyError(f"{workdir}: was trained without LoRA and has no adapters to write")
    for path in map(Path, filter(None, (_OUT.value, _ADAPTER.value))):
        if path.suffix != ".safetensors":
            raise FlowleyError(f"{path}: must end in .safetensors")
        with name_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    validation_loss = (
        _loss_on(config, Path(_RECORDS.value or config.data.records)) if _VALIDATE.value else None
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
            write_adapters(Path(_ADAPTER.value), weights.adapters, config.lora)
            print(_ADAPTER.value)
    return 0


def _loss_on(config: "ExperimentConfig", records: Path) -> "Callable[[Weights], float] | None":
    """Return the function from weights to their validation loss; None if there is nothing to validate on."""
    from flowley_jax.config import LoraConfig, MeshConfig
    from flowley_jax.data.record import has_records, has_split
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
        print(f"no validation loss: {records}: {missing}", flush=True)
        return None
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
