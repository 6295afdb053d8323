"""From nothing to sound on silent clips: python -m flowley_jax.demo --out runs/demo"""

import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from flowley_jax.cli import run_main
from flowley_jax.config import experiment_from

_CONFIG = config_flags.DEFINE_config_file(
    "config", str(Path(__file__).parents[1] / "configs/impacts.py"), "Configuration of the training."
)
_OUT = flags.DEFINE_string("out", "runs/demo", "Folder for everything that is made; what is there is reused.")
_TRAIN_CLIPS = flags.DEFINE_integer("train_clips", 640, "Clips to train on.", lower_bound=1)
_TEST_CLIPS = flags.DEFINE_integer(
    "test_clips", 64, "Held-out clips to give sound and to score.", lower_bound=2
)
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes that make and read clips.", lower_bound=1)


def main() -> int:
    """Runs every stage, or finds it done; the last line printed is a JSON object of the figures."""
    from data_prep.impacts.generate import ClipSetConfig
    from flowley_jax.demonstration import run_demonstration

    clip_set = ClipSetConfig(train=_TRAIN_CLIPS.value, test=_TEST_CLIPS.value)
    out = Path(_OUT.value)
    figures = run_demonstration(
        experiment_from(_CONFIG.value.to_dict()), clip_set, out, workers=_WORKERS.value
    )
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    run_main(main)
