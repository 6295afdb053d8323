"""Evaluations in a run give the same metrics in any number of processes."""

from pathlib import Path

import labelled
import launching
import numpy as np
import pytest

from flowley_jax.training.metrics import read_history

pytestmark = pytest.mark.scale


def _run(workdir):
    # Two processes do not divide nine clips.
    train = {"evaluate_every": 2, "evaluate_clips": 9, "valid_every": 100, "checkpoint_every": 100}
    return {"workdir": str(workdir), "steps": 2, "train": train}


def _scores(workdir: Path):
    rows = [row for row in read_history(workdir) if "eval/FD-TAGGER" in row]
    return {row["step"]: {name: value for name, value in row.items() if name != "step"} for row in rows}


def test_metrics_do_not_depend_on_the_processes(tmp_path):
    records = labelled.write_labelled_records(tmp_path)
    launching.launch(records, [_run(tmp_path / "one")], devices=1)
    launching.launch(records, [_run(tmp_path / "two")], devices=2, processes=2)
    expected, found = _scores(tmp_path / "one"), _scores(tmp_path / "two")
    assert list(found) == list(expected) == [2]
    for step, metrics in expected.items():
        assert found[step].keys() == metrics.keys() >= {"eval/KAD-TAGGER", "eval/material-accuracy"}
        for name, value in metrics.items():
            np.testing.assert_allclose(found[step][name], value, rtol=1e-4, err_msg=name)
