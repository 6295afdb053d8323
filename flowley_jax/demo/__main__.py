"""Run the whole system on generated clips: python -m flowley_jax.demo --out runs/demo"""

import json
from pathlib import Path

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.common.compilation_cache import define_compilation_cache, use_compilation_cache
from flowley_jax.common.number_flags import define_int
from flowley_jax.common.ranges import PROCESSES, Range
from flowley_jax.config_flag import experiment_flag

_CONFIG = experiment_flag("Training configuration.", default="impacts.py")
_OUT = flags.DEFINE_string("out", "runs/demo", "Folder for all outputs; existing ones are reused.")
# Ids of generated clips have five digits.
_TRAIN_CLIPS = define_int("train_clips", 640, "Clips to train on.", Range(least=1, most=100_000))
_TEST_CLIPS = define_int(
    "test_clips", 64, "Held-out clips to sample sound for and to score.", Range(least=2, most=100_000)
)
_WORKERS = define_int("workers", 2, "Processes that generate and read clips.", PROCESSES)
_COMPILATION_CACHE = define_compilation_cache()


def main() -> int:
    """Run every stage that is not done yet; print the figures as a JSON object in the last line."""
    from data_prep.impacts.generate import ClipSetConfig
    from flowley_jax.demo.stages import run_demonstration

    use_compilation_cache(_COMPILATION_CACHE.value)
    clip_set = ClipSetConfig(train=_TRAIN_CLIPS.value, test=_TEST_CLIPS.value)
    out = Path(_OUT.value)
    figures = run_demonstration(_CONFIG.value, clip_set, out, workers=_WORKERS.value)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    run_main(main, _CONFIG)
