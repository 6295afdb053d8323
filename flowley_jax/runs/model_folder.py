"""The folder of a shared model: averaged weights of a run, its configuration and its components.

It takes the place of the run's folder wherever weights are read: in sampling, evaluation and fine-tuning.
"""

import dataclasses
from pathlib import Path

from flowley_jax.config import ExperimentConfig, LoraConfig
from flowley_jax.errors import FlowleyError
from flowley_jax.runs.weights import Weights, averaged_weights, write_weights
from flowley_jax.runs.workdir import COMPONENTS, MODEL, load_components, read_config, write_config


def write_model_folder(
    workdir: Path, out: Path, *, sigma_rel: float, dtype: str = "float32", compact: bool = False
) -> Weights:
    """Write the averaged weights of a run, its configuration without paths, and its components.

    Args:
      workdir: folder of the run.
      out: new or empty folder.
      sigma_rel: length of the average.
      dtype: type of the stored weights, float32 or bfloat16.
      compact: whether a block that several layers share is stored once; see `write_weights`.

    Returns:
      The weights.

    Raises:
      FlowleyError: the folder holds no run with averaged weights and components, or `out` is not empty or
        cannot be written.
    """
    check_empty(out)
    config, components = read_config(workdir), load_components(workdir)
    weights = averaged_weights(workdir, sigma_rel=sigma_rel)
    notes = {"sigma_rel": str(sigma_rel), "step": str(weights.step)}
    components.save(out / COMPONENTS)
    write_config(out, _without_paths(config, sigma_rel), components)
    # Last, because it is what makes the folder one of a model.
    write_weights(out / MODEL, weights, notes, dtype=dtype, compact=compact)
    return weights


def check_empty(out: Path) -> None:
    """Raise FlowleyError unless the folder is new or empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FlowleyError(f"{out}: exists and is not an empty folder; choose another --out")


def _without_paths(config: ExperimentConfig, sigma_rel: float) -> ExperimentConfig:
    """Return the configuration without paths of this machine, and without LoRA, which is merged by now."""
    start = Path(config.start.weights).name
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, records=""),
        start=dataclasses.replace(config.start, weights=start),
        lora=LoraConfig(),
        train=dataclasses.replace(config.train, evaluate_every=0, evaluate_networks=""),
        ema=dataclasses.replace(config.ema, sigma_rels=(sigma_rel,)),
        sample=dataclasses.replace(config.sample, sigma_rel=sigma_rel),
    )
