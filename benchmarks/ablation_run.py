"""One run of `benchmarks.ablation`: train, generate sound for the test clips, score it, write result.json."""

import json
from pathlib import Path

from absl import flags

from flowley_jax.cli import STOPPED_EARLY, run_main
from flowley_jax.config_flag import experiment_flag

_CONFIG = experiment_flag("Training configuration.")
_CLIPS = flags.DEFINE_string("clips", None, "Folder of the clip set.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the run.", required=True)
_TAGGER = flags.DEFINE_string("tagger", None, "File of the embedded tagger of all runs.", required=True)


def main() -> int:
    """Run the command line; return 0 when result.json is written, 75 when a signal stopped the training."""
    from benchmarks.log_mel_distance import log_mel_distance_to_clips
    from flowley_jax.common.files import write_text
    from flowley_jax.demo.scoring import GENERATED, score_impacts
    from flowley_jax.sampling.sampler import Sampler
    from flowley_jax.training.loop import train
    from flowley_jax.training.metrics import read_history

    config, out = _CONFIG.value, Path(_OUT.value)
    if train(config, out / "train").interrupted:
        return STOPPED_EARLY
    evaluation = score_impacts(
        Sampler.from_run(out / "train"),
        Path(_CLIPS.value),
        out / "samples",
        out / "evaluation",
        seed=config.seed,
        workers=1,
        tagger=Path(_TAGGER.value),
    )
    losses = [row["valid/loss"] for row in read_history(out / "train") if "valid/loss" in row]
    figures = {
        **evaluation.rows[GENERATED].metrics,
        "log-mel-FD": log_mel_distance_to_clips(out / "samples", Path(_CLIPS.value) / "test"),
        "valid_loss": losses[-1],
    }
    write_text(out / "result.json", json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    run_main(main, _CONFIG)
