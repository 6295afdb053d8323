"""Compile the training step, or sampling, for any topology, and print what it needs:
python -m flowley_jax.compile --config configs/vggsound.py --topology v5e:4x4
"""

import dataclasses
import json
import sys

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.config_flag import experiment_flag
from flowley_jax.errors import FlowleyError

DOES_NOT_FIT = 3

_CONFIG = experiment_flag("Training configuration.")
_WHAT = flags.DEFINE_enum(
    "what", "train", ["train", "sample"], "Program to compile: a training step, or a guided sample."
)
_CLIPS = flags.DEFINE_integer("clips", 8, "Clips per batch of a guided sample, on one device.", lower_bound=1)
_TOPOLOGY = flags.DEFINE_string("topology", "cpu", "TPU topology, such as v5e:16x16 or v5p:4x4x4, or cpu.")
_SLICES = flags.DEFINE_integer("slices", 1, "Number of slices of this topology.", lower_bound=1)
_MFU = flags.DEFINE_float(
    "mfu", 0.4, "Share of the devices' peak FLOPs to assume.", lower_bound=0.01, upper_bound=1.0
)
_JSON = flags.DEFINE_string("json", None, "File to write the figures to, as JSON.")


def main() -> int:
    """Print a table; return 3 if the program does not fit into a device's memory."""
    from flowley_jax.aot.estimate import DoesNotFitError, format_table
    from flowley_jax.aot.sample import compile_sampling
    from flowley_jax.aot.train import compile_step
    from flowley_jax.common.files import write_text

    config = _CONFIG.value
    if _WHAT.value == "sample" and _SLICES.value > 1:
        raise FlowleyError(f"--slices={_SLICES.value} needs --what=train; sampling runs on one device")
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
