"""Settings shared by all tests: CPU only, no silent broadcasting between ranks, flags parsed, no window."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Many tests, and the programs that they start, compile the same training step.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import matplotlib
import pytest
import tiny
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")
matplotlib.use("Agg")
# Grain's worker processes read absl flags, which no test parses.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """Folder of a finished run of three steps; tests read it and never train in it."""
    from flowley_jax.training.loop import train

    folder = tmp_path_factory.mktemp("tiny")
    train(tiny.experiment(tiny.write_records(folder / "records"), steps=3), folder / "run")
    return folder / "run"
