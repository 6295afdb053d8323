"""A training process that is killed at any moment loses only time.

`make test-scale` kills it twice, `make test-soak` more often.
"""

import os
import random
import signal
import time

import launching
import numpy as np
import pytest
import tiny

from flowley_jax.training.metrics import read_history

pytestmark = pytest.mark.scale

# Every second step begins a checkpoint, so that many kills fall into one.
RUN = {"train": {"valid_every": 1000, "checkpoint_every": 2}, "ema": {"snapshot_every": 1000}}


@pytest.mark.parametrize(("kills", "steps"), [(2, 50), pytest.param(20, 120, marks=pytest.mark.soak)])
def test_kills_at_random_moments_change_nothing(kills, steps, tmp_path):
    records = tiny.write_records(tmp_path / "records")
    whole, killed = ({**RUN, "steps": steps, "workdir": str(tmp_path / name)} for name in ("whole", "killed"))
    expected = launching.leaves(records, whole, after=[whole])
    chance = random.Random(0)
    reached = []
    for _ in range(kills):
        with launching.started(records, [killed], devices=1) as (process,):
            _wait_for_steps(process, tmp_path / "killed", chance.choice([0, 1, 2, 3, 5, 8]), chance)
            # Anywhere within a step, a save, a restore or the start of the program.
            time.sleep(chance.uniform(0.0, 0.3))
        reached.append(_last_step(tmp_path / "killed"))
    assert len(set(reached)) > kills // 4, reached
    found = launching.leaves(records, killed, after=[killed])
    rows = [row["step"] for row in read_history(tmp_path / "killed") if "train/loss" in row]
    assert rows == list(range(1, steps + 1))
    assert int(expected["step"]) == steps
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def _last_step(workdir) -> int:
    return max((row["step"] for row in read_history(workdir)), default=0)


def _wait_for_steps(process, workdir, steps: int, chance) -> None:
    """Wait until the process has logged this many steps; 0 waits for a random time before the first one."""
    if steps == 0:
        return time.sleep(chance.uniform(0.0, 8.0))
    target = None
    while process.poll() is None:
        # A run that resumes drops the metrics after its last checkpoint.
        now = _last_step(workdir)
        target = now + steps if target is None or now + steps < target else target
        if now >= target:
            return None
        time.sleep(0.02)
    return None


def _sigterm_to_one(workers):
    workers[1].terminate()


def _ctrl_c_in_all(workers):
    for process in workers:
        os.killpg(process.pid, signal.SIGINT)


@pytest.mark.parametrize("send", [_sigterm_to_one, _ctrl_c_in_all])
def test_a_signal_stops_all_processes_after_the_same_step(send, tmp_path):
    records = tiny.write_records(tmp_path / "records")
    run = {"steps": 5000, "workdir": str(tmp_path / "run")}
    run["train"] = {"valid_every": 10_000, "checkpoint_every": 10_000}
    run["ema"] = {"snapshot_every": 10_000}
    with launching.started(records, [run], devices=2, processes=2) as workers:
        while len(read_history(tmp_path / "run")) < 3:
            assert all(process.poll() is None for process in workers)
            time.sleep(0.1)
        send(workers)
        for process in workers:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output[-4000:]
    last = read_history(tmp_path / "run")[-1]["step"]
    assert 3 <= last < 5000
    assert int(launching.leaves(records, run)["step"]) == last


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_process_group_leaves_reading_workers_alone(number, tmp_path):
    records = tiny.write_records(tmp_path / "records")
    run = {"steps": 5000, "workdir": str(tmp_path / "run"), "data": {"num_workers": 2}}
    run["train"] = {"valid_every": 10_000, "checkpoint_every": 10_000}
    run["ema"] = {"snapshot_every": 10_000}
    with launching.started(records, [run], devices=1) as (process,):
        _wait_for_steps(process, tmp_path / "run", 3, random)
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-4000:]
    assert "Traceback" not in output and "leaked" not in output and "ignored" not in output, output[-4000:]
    last = read_history(tmp_path / "run")[-1]["step"]
    assert 3 <= last < 5000
    assert int(launching.leaves(records, run)["step"]) == last


def test_reading_workers_end_with_a_killed_program(tmp_path):
    records = tiny.write_records(tmp_path / "records")
    run = {"steps": 5000, "workdir": str(tmp_path / "run"), "data": {"num_workers": 2}}
    with launching.started(records, [run], devices=1) as (process,):
        _wait_for_steps(process, tmp_path / "run", 3, random)
        process.kill()
        # The workers hold the other end of the pipe, which is read to its end here.
        output, _ = process.communicate(timeout=60)
    assert "Traceback" not in output, output[-4000:]
