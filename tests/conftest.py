"""Settings of all tests: CPU only, no implicit broadcasting between ranks, parsed flags, no window."""

import gc
import os
import signal
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Many tests, and the programs that they start, compile the same training step.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Tiny networks take longer to compile than to run, and half as long without the newer fusion emitter.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")

import hypothesis
import jax
import matplotlib
import pytest
import tiny
from absl import flags

from flowley_jax.common.librosa_loading import load_librosa

jax.config.update("jax_numpy_rank_promotion", "raise")
matplotlib.use("Agg")
# Before any test imports librosa itself.
load_librosa()
# A shell starts background jobs with SIGINT ignored, and programs that the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Traces make many objects and few cycles; looking for these takes a quarter of the time of all tests.
gc.set_threshold(200_000, 50, 100)
# Grain's worker processes read absl flags, which no test parses.
flags.FLAGS.mark_as_parsed()


# A change is tested by the same examples wherever it is tested; make test-soak draws others.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.register_profile("new", derandomize=False)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """Return the folder of a finished run of three steps, which tests read and never change."""
    from flowley_jax.training.loop import train

    folder = tmp_path_factory.mktemp("tiny")
    train(tiny.experiment(tiny.write_records(folder / "records"), steps=3), folder / "run")
    return folder / "run"
