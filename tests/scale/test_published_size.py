"""The network of the published size trains from the command line."""

import json
import sys
from pathlib import Path

import children
import numpy as np
import pytest

pytestmark = pytest.mark.soak
ROOT = Path(__file__).parents[2]


def test_published_size_trains_for_a_few_steps(tmp_path):
    workdir = tmp_path / "run"
    flags = ["--config", str(ROOT / "configs/vggsound.py") + ":base,debug", "--workdir", str(workdir)]
    command = [sys.executable, "-m", "flowley_jax.train", *flags]
    result = children.run(command, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) >= 2 and np.isfinite(losses).all()
    assert "170,893,077 parameters" in result.stderr
