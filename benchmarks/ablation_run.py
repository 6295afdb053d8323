"""One run of the ablation: trains, gives the test clips their sound, and writes result.json."""

import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from flowley_jax.cli import run_main
from flowley_jax.config import experiment_from

INTERRUPTED = 75

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration of the training.")
_CLIPS = flags.DEFINE_string("clips", None, "Folder of the clip set.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the run.", required=True)


def main() -> int:
    """Returns 0 when result.json is written, 75 when a signal stopped the training."""
    from flowley_jax.evaluation.held_out import score_held_out
    from flowley_jax.sampling.sampler import Sampler
    from flowley_jax.training.loop import train
    from flowley_jax.training.metrics import read_history
    from flowley_jax.whole_files import write_text

    config, out = experiment_from(_CONFIG.value.to_dict()), Path(_OUT.value)
    if train(config, out / "train").interrupted:
        return INTERRUPTED
    scored = score_held_out(
        Sampler.load(out / "train"), Path(_CLIPS.value), out / "samples", seed=config.seed
    )
    losses = [row["valid/loss"] for row in read_history(out / "train") if "valid/loss" in row]
    figures = {**scored.rows["generated"].figures, "valid_loss": losses[-1]}
    write_text(out / "result.json", json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    run_main(main)
