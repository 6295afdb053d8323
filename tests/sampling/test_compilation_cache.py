"""Programs that one start of a command compiles, and the next one reuses."""

import json
import os
import sys

import children
import numpy as np
import pytest
import shell
import tiny

from flowley_jax.media.write import write_video

# Runs a command, and prints at its end how many programs JAX asked for, and how many the cache had.
COUNTING = """
import atexit, collections, json, runpy, sys
import jax.monitoring

counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))
jax.monitoring.register_event_duration_secs_listener(lambda event, seconds, **_: counts.update([event]))
names = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"
atexit.register(lambda: print(json.dumps([counts[name] for name in names])))
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
VARIABLES = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


@pytest.fixture
def sample(tiny_run, tmp_path):
    """A function that samples sound as a user does who sets no variable of JAX."""
    write_video(tmp_path / "a.mp4", np.zeros((10, 32, 32, 3), np.uint8), tiny.FPS)
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "user")

    def run(out, *flags):
        paths = "--workdir", tiny_run, "--video", tmp_path / "a.mp4", "--out", tmp_path / out
        command = [sys.executable, "-c", COUNTING, "flowley_jax.sample", *paths, *flags]
        result = children.run(command, cwd=shell.ROOT, env=environment, check=True)
        assert "compilation cache" not in result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return run


def test_the_second_start_compiles_nothing(sample, tmp_path):
    requests, hits = sample("first.wav")
    assert hits < requests
    programs = shell.tree(tmp_path / "user")
    requests, hits = sample("second.wav")
    assert hits == requests > 0
    assert shell.tree(tmp_path / "user").keys() == programs.keys()
    assert (tmp_path / "first.wav").read_bytes() == (tmp_path / "second.wav").read_bytes()


def test_without_a_cache_nothing_is_written(sample, tmp_path):
    requests, hits = sample("a.wav", "--compilation-cache=none")
    assert requests > hits == 0
    assert not (tmp_path / "user").exists()
