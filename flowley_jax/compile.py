"""Compile the training step, or sampling, for any topology, and print what it needs:
python -m flowley_jax.compile --config configs/vggsound.py --topology v5e:4x4
"""

import dataclasses
import json
import sys
from pathlib import Path

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.common.number_flags import define_float, define_int
from flowley_jax.common.ranges import Range
from flowley_jax.config_flag import experiment_flag
from flowley_jax.errors import FlowleyError

DOES_NOT_FIT = 3

_CONFIG = experiment_flag("Training configuration.")
_WHAT = flags.DEFINE_enum(
    "what", "train", ["train", "sample"], "Program to compile: a training step, or a guided sample."
)
_CLIPS = define_int(
    "clips", 8, "Clips per batch of a guided sample, on one device.", Range(least=1, most=100_000)
)
_TOPOLOGY = flags.DEFINE_string("topology", "cpu", "TPU topology, such as v5e:16x16 or v5p:4x4x4, or cpu.")
_SLICES = define_int("slices", 1, "Number of slices of this topology.", Range(least=1, most=1000))
_MFU = define_float("mfu", 0.4, "Share of the devices' peak FLOPs to assume.", Range(least=0.01, most=1))
_JSON = flags.DEFINE_string("json", None, "File to write the figures to, as JSON.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the file --json if it exists.")


def main() -> int:
    """Print a table; return 3 if the program does not fit into a device's memory."""
    from flowley_jax.aot.estimate import DoesNotFitError, format_table
    from flowley_jax.aot.sample import compile_sampling
    from flowley_jax.aot.topologies import topology_devices
    from flowley_jax.aot.train import compile_step
    from flowley_jax.common.files import check_new_file, write_text
    from flowley_jax.training.sharding import make_layout

    config = _CONFIG.value
    if _WHAT.value == "sample" and _SLICES.value > 1:
        raise FlowleyError(f"--slices={_SLICES.value} needs --what=train; sampling runs on one device")
    if _TOPOLOGY.value == "cpu" and _SLICES.value > 1:
        raise FlowleyError(f"--slices={_SLICES.value} needs a TPU --topology, such as v5e:16x16")
    if _JSON.value is not None:
        check_new_file(Path(_JSON.value), overwrite=_OVERWRITE.value, option="--json")
    devices, _ = topology_devices(_TOPOLOGY.value, slices=_SLICES.value)
    if _WHAT.value == "train":
        make_layout(config.mesh, config.model, batch_size=config.data.batch_size, devices=devices)
    print(f"compiling for {_TOPOLOGY.value}, which takes minutes for a large network", file=sys.stderr)
    try:
        if _WHAT.value == "sample":
            estimate = compile_sampling(config, _TOPOLOGY.value, clips=_CLIPS.value, mfu=_MFU.value)
        else:
            estimate = compile_step(config, _TOPOLOGY.value, slices=_SLICES.value, mfu=_MFU.value)
    except DoesNotFitError as error:
        print(error)
        return DOES_NOT_FIT
    print(format_table(estimate, steps=0 if _WHAT.value == "sample" else config.train.steps, mfu=_MFU.value))
    if _JSON.value:
        figures = {**dataclasses.asdict(estimate), "mfu": _MFU.value, "fits": estimate.fits}
        write_text(_JSON.value, json.dumps(figures, indent=2) + "\n")
    return 0 if estimate.fits else DOES_NOT_FIT


if __name__ == "__main__":
    run_main(main, _CONFIG)
