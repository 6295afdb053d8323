"""Compiles the training step, or sampling, for any topology: python -m flowley_jax.compile
--config configs/vggsound.py --topology v5e:4x4
"""

import dataclasses
import json
import sys

from absl import flags
from ml_collections import config_flags

from flowley_jax.cli import run_main
from flowley_jax.config import experiment_from

DOES_NOT_FIT = 3

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, as for training.")
_WHAT = flags.DEFINE_enum(
    "what", "train", ["train", "sample"], "Program: a training step, or a guided sample."
)
_CLIPS = flags.DEFINE_integer("clips", 8, "Clips that are sampled together, on one chip.", lower_bound=1)
_TOPOLOGY = flags.DEFINE_string("topology", "cpu", "Chips, such as v5e:16x16 or v5p:4x4x4, or cpu.")
_SLICES = flags.DEFINE_integer("slices", 1, "Number of such slices.", lower_bound=1)
_MFU = flags.DEFINE_float("mfu", 0.4, "Assumed share of the chips' peak.", lower_bound=0.01, upper_bound=1.0)
_JSON = flags.DEFINE_string("json", None, "File for the figures.")


def main() -> int:
    """Command line; prints a table, and returns 3 where the step does not fit into a chip's memory."""
    from flowley_jax.sampling.ahead import compile_sampling
    from flowley_jax.training.ahead import DoesNotFitError, compile_step
    from flowley_jax.training.ahead_table import table
    from flowley_jax.whole_files import write_text

    config = experiment_from(_CONFIG.value.to_dict())
    print(f"compiling for {_TOPOLOGY.value}, which takes minutes for a large network", file=sys.stderr)
    try:
        if _WHAT.value == "sample":
            estimate = compile_sampling(config, _TOPOLOGY.value, clips=_CLIPS.value, mfu=_MFU.value)
        else:
            estimate = compile_step(config, _TOPOLOGY.value, slices=_SLICES.value, mfu=_MFU.value)
    except DoesNotFitError as error:
        print(error)
        return DOES_NOT_FIT
    print(table(estimate, steps=0 if _WHAT.value == "sample" else config.train.steps, mfu=_MFU.value))
    if _JSON.value:
        figures = {**dataclasses.asdict(estimate), "mfu": _MFU.value, "fits": estimate.fits}
        write_text(_JSON.value, json.dumps(figures, indent=2) + "\n")
    return 0 if estimate.fits else DOES_NOT_FIT


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    run_main(main)
