"""A training process that is killed at any moment loses nothing but time.

`make test-scale` runs this; `make test` leaves it out.
"""

import random
import time

import launching
import numpy as np
import pytest
import tiny

from flowley_jax.training.metrics import read_history

pytestmark = pytest.mark.scale

KILLS = 20
# Every second step begins a checkpoint, so that many kills fall into one.
RUN = {"steps": 120, "train": {"valid_every": 1000, "checkpoint_every": 2}}


def test_kills_at_random_moments_change_nothing(tmp_path):
    records = tiny.write_records(tmp_path / "records")
    whole, killed = ({**RUN, "workdir": str(tmp_path / name)} for name in ("whole", "killed"))
    launching.launch(records, [{**whole, "workdir": str(tmp_path / "first")}], devices=1)
    began = time.monotonic()
    # With its programs in the cache, as those that are killed have them.
    launching.launch(records, [whole], devices=1)
    seconds = time.monotonic() - began
    chance = random.Random(0)
    reached = []
    for _ in range(KILLS):
        (process,) = launching.start(records, [killed], devices=1)
        time.sleep(chance.uniform(0.4, 0.9) * seconds)
        process.kill()
        process.communicate()
        reached.append(max((row["step"] for row in read_history(tmp_path / "killed")), default=0))
    assert len(set(reached)) > 4, reached
    launching.launch(records, [killed], devices=1)
    rows = [row["step"] for row in read_history(tmp_path / "killed") if "train/loss" in row]
    assert rows == list(range(1, RUN["steps"] + 1))
    expected, found = launching.leaves(records, whole), launching.leaves(records, killed)
    assert int(expected["step"]) == RUN["steps"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_preemption_of_one_process_stops_all_after_the_same_step(tmp_path):
    records = tiny.write_records(tmp_path / "records")
    run = {"steps": 5000, "workdir": str(tmp_path / "run")}
    run["train"] = {"valid_every": 10_000, "checkpoint_every": 10_000}
    started = launching.start(records, [run], devices=2, processes=2)
    while len(read_history(tmp_path / "run")) < 3:
        assert all(process.poll() is None for process in started)
        time.sleep(0.1)
    started[1].terminate()
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-4000:]
    last = read_history(tmp_path / "run")[-1]["step"]
    assert 3 <= last < 5000
    assert int(launching.leaves(records, run)["step"]) == last
