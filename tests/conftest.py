"""Settings shared by all tests: CPU only, no silent broadcasting between ranks, flags parsed, no window."""

import dataclasses
import gc
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Many tests, and the programs that they start, compile the same training step.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Tiny networks take longer to compile than to run; without the newer emitter of fusions half as long.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")

import jax
import matplotlib
import pytest
import tiny
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")
matplotlib.use("Agg")
# Traces make many objects and few cycles; looking for these takes a quarter of the time of all tests.
gc.set_threshold(200_000, 50, 100)
# Grain's worker processes read absl flags, which no test parses.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """Folder of a finished run of three steps; tests read it and never train in it."""
    from flowley_jax.training.loop import train

    folder = tmp_path_factory.mktemp("tiny")
    train(tiny.experiment(tiny.write_records(folder / "records"), steps=3), folder / "run")
    return folder / "run"


@pytest.fixture(scope="session", autouse=True)
def programs_by_network():
    """Lets runs of one network and one optimiser share their programs, whose tracing takes longer than all
    their steps."""
    from flowley_jax.training import loop, state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "_beginning", _remembered_beginning(state._beginning))
        patch.setattr(loop, "make_train_step", _remembered(loop.make_train_step))
        patch.setattr(loop, "make_valid_step", _remembered(loop.make_valid_step))
        yield


def _remembered(make):
    """`make`, called once for all configurations that differ in nothing that a step reads."""
    made = {}

    def remembering(config, graphdef, *rest):
        unread = {"data": None, "start": None, "sample": None, "ema": config.ema.sigma_rels}
        cosine = config.optim.schedule == "cosine"
        read = (config.train.accumulation, config.train.log_every, cosine and config.train.steps)
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        key = (*({**fields, **unread, "train": read}).values(), graphdef, rest[-1])
        if key not in made:
            made[key] = make(config, graphdef, *rest)
        return made[key]

    return remembering


def _remembered_beginning(make):
    made = {}

    def remembering(config, optimizer):
        key = (config.seed, config.model, config.lora, config.ema.sigma_rels, config.optim)
        if key not in made:
            made[key] = make(config, optimizer)
        return made[key]

    return remembering
