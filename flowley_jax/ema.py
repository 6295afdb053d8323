"""Averages of a run's weights, of any length, after the training: python -m flowley_jax.ema --workdir DIR
--sigma-rel 0.05

Several lengths are compared by their validation loss; the weights of one are written with --out.
"""

import dataclasses
from pathlib import Path

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.errors import FlowleyError
from flowley_jax.whole_files import naming

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.", required=True)
_SIGMA_REL = flags.DEFINE_multi_float(
    "sigma_rel", None, "Length of the average, relative to the run; may be given several times."
)
_RECORDS = flags.DEFINE_string("records", None, "Records to validate on; the run's own if not given.")
_VALIDATE = flags.DEFINE_bool("validate", True, "Compute the validation loss of each length.")
_OUT = flags.DEFINE_string("out", None, "File (.safetensors) for all weights, under the published names.")
_ADAPTER = flags.DEFINE_string("adapter", None, "File (.safetensors) for what LoRA learned, alone.")


def main() -> int:
    """Command line; prints a line for each length."""
    from flowley_jax.training.weights import averaged_weights, write_adapters, write_weights
    from flowley_jax.training.workdir import read_config

    workdir = Path(_WORKDIR.value)
    config = read_config(workdir)
    lengths = _SIGMA_REL.value or list(config.ema.sigma_rels)
    for sigma_rel in lengths:
        dataclasses.replace(config.sample, sigma_rel=sigma_rel)
    if (_OUT.value or _ADAPTER.value) and len(lengths) > 1:
        raise FlowleyError(f"--out and --adapter take one --sigma-rel, not {len(lengths)}")
    if _ADAPTER.value and not config.lora.rank:
        raise FlowleyError(f"{workdir}: was trained without LoRA, and has no adapters to write")
    for path in map(Path, filter(None, (_OUT.value, _ADAPTER.value))):
        if path.suffix != ".safetensors":
            raise FlowleyError(f"{path}: must end in .safetensors")
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    losses = _losses_on(config, Path(_RECORDS.value or config.data.records)) if _VALIDATE.value else None
    for sigma_rel in lengths:
        weights = averaged_weights(workdir, sigma_rel=sigma_rel)
        line = f"sigma_rel {sigma_rel:g}, up to step {weights.step}"
        print(f"{line}: validation loss {losses(weights):.5f}" if losses else line, flush=True)
        notes = {"sigma_rel": str(sigma_rel), "step": str(weights.step)}
        if _OUT.value:
            write_weights(Path(_OUT.value), weights, notes)
            print(_OUT.value)
        if _ADAPTER.value:
            write_adapters(Path(_ADAPTER.value), weights.adapters, config.lora)
            print(_ADAPTER.value)
    return 0


def _losses_on(config, records: Path):
    import jax.numpy as jnp

    from flowley_jax.config import LoraConfig, MeshConfig
    from flowley_jax.data.record import has_records, has_split
    from flowley_jax.training.sharding import make_layout
    from flowley_jax.training.state import TrainState
    from flowley_jax.training.step import make_valid_step
    from flowley_jax.training.validation import validation_losses

    if not has_records(records) or not has_split(records, "valid"):
        raise FlowleyError(
            f"{records}: no records with a valid split; name others by --records, or use --novalidate"
        )
    # Adapters are merged by now, and this machine need not be the one that trained.
    config = dataclasses.replace(config, lora=LoraConfig(), mesh=MeshConfig())
    layout = make_layout(config)
    valid_fn = None

    def loss(weights) -> float:
        nonlocal valid_fn
        valid_fn = valid_fn or make_valid_step(config, weights.graphdef, layout)
        parameters, constants = layout.place_weights((weights.parameters, weights.constants))
        state = TrainState(jnp.zeros((), jnp.int32), parameters, {}, constants, (), ())
        return validation_losses(valid_fn, state, records, config, layout)["valid/loss"]

    return loss


if __name__ == "__main__":
    run_main(main)
