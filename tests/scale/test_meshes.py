"""The same run on any mesh, in any number of processes: same losses, same state, same order of the data.

`make test-scale` runs one mesh of each kind, `make test-soak` the others.
"""

from pathlib import Path

import launching
import numpy as np
import pytest
import tiny

from flowley_jax.training.metrics import read_history

pytestmark = pytest.mark.scale

STEPS = 20
TRAIN = {"valid_every": 10, "checkpoint_every": 10}
SOAK = pytest.mark.soak


def _run(workdir, *, steps=STEPS, train=None, **changes):
    return {"workdir": str(workdir), "steps": steps, "train": {**TRAIN, **(train or {})}, **changes}


def _losses(workdir):
    rows = [row for row in read_history(Path(workdir)) if "train/loss" in row]
    return [row["step"] for row in rows], [row["train/loss"] for row in rows]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return tiny.write_records(tmp_path_factory.mktemp("records") / "records")


@pytest.fixture(scope="module")
def alone(records, tmp_path_factory):
    """One device, one process, and nothing that changes how the step is computed."""
    workdir = tmp_path_factory.mktemp("alone")
    launching.launch(records, [_run(workdir)], devices=1)
    return workdir


def _assert_same_run(workdir, alone):
    steps, losses = _losses(workdir)
    assert steps == list(range(1, STEPS + 1))
    np.testing.assert_allclose(losses, _losses(alone)[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("devices", "runs"),
    [
        (
            1,
            {
                "accumulated": {"train": {"accumulation": 4}},
                "scanned": {"model": {"layers": "scanned", "remat": "block"}},
            },
        ),
        (
            8,
            {
                "data 2, fsdp 2, tensor 2": {
                    "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
                    "model": {"layers": "scanned", "remat": "block"},
                    "train": {"accumulation": 2},
                }
            },
        ),
        pytest.param(1, {"again": {}, "with workers": {"data": {"num_workers": 2}}}, marks=SOAK),
        pytest.param(2, {"fsdp 2": {"mesh": {"fsdp": 2}}}, marks=SOAK),
        pytest.param(
            4, {"data 2, tensor 2": {"mesh": {"tensor": 2}, "train": {"accumulation": 2}}}, marks=SOAK
        ),
        pytest.param(8, {"data 8": {}, "fsdp 8": {"mesh": {"fsdp": 8}}}, marks=SOAK),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else str(value),
)
def test_losses_do_not_depend_on_the_mesh(devices, runs, records, alone, tmp_path):
    configured = {name: _run(tmp_path / name, **changes) for name, changes in runs.items()}
    launching.launch(records, list(configured.values()), devices=devices)
    for name in configured:
        _assert_same_run(tmp_path / name, alone)


@pytest.mark.parametrize(
    "mesh",
    [{"fsdp": 2, "tensor": 2}, pytest.param({}, marks=SOAK), pytest.param({"fsdp": 8}, marks=SOAK)],
)
def test_losses_do_not_depend_on_the_processes(mesh, records, alone, tmp_path):
    launching.launch(records, [_run(tmp_path, mesh=mesh)], devices=4, processes=2)
    _assert_same_run(tmp_path, alone)


def test_a_run_goes_on_with_other_meshes_processes_and_workers(records, alone, tmp_path):
    """The state of every stop is taken over bit for bit; what follows differs by rounding alone."""
    halves = [
        {"steps": 10, "devices": 4, "processes": 2, "mesh": {"fsdp": 4}},
        {"steps": 15, "devices": 8, "processes": 1, "mesh": {"tensor": 2}, "data": {"num_workers": 2}},
        {"steps": STEPS, "devices": 1, "processes": 1},
    ]
    for half in halves:
        settings = {key: half.pop(key) for key in ("devices", "processes")}
        launching.launch(records, [_run(tmp_path, **half)], **settings)
    _assert_same_run(tmp_path, alone)
    resumed, whole = (launching.leaves(records, _run(path)) for path in (tmp_path, alone))
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(resumed[name], value, rtol=2e-3, atol=2e-5, err_msg=name)


def test_a_checkpoint_is_the_same_on_another_mesh(records, tmp_path):
    launching.launch(records, [_run(tmp_path, steps=10, mesh={"fsdp": 4})], devices=4, processes=2)
    stored = launching.leaves(records, _run(tmp_path))
    split = _run(tmp_path, mesh={"fsdp": 2, "tensor": 2})
    restored = launching.leaves(records, split, devices=8)
    assert int(stored["step"]) == 10
    assert restored.keys() == stored.keys()
    for name, value in stored.items():
        np.testing.assert_array_equal(restored[name], value, err_msg=name)


def test_adapters_do_not_depend_on_the_mesh(records, alone, tmp_path):
    adapters = {"lora": {"rank": 2}, "start": {"weights": str(alone)}}
    launching.launch(records, [_run(tmp_path / "alone", **adapters)], devices=1)
    split = _run(tmp_path / "split", mesh={"fsdp": 2, "tensor": 2}, **adapters)
    launching.launch(records, [split], devices=4, processes=2)
    _assert_same_run(tmp_path / "split", tmp_path / "alone")


def test_processes_agree_on_a_damaged_checkpoint(records, alone, tmp_path):
    run = {"train": {"checkpoint_every": 5}, "mesh": {"fsdp": 4}}
    launching.launch(records, [_run(tmp_path, steps=10, **run)], devices=4, processes=2)
    files = [path for path in (tmp_path / "checkpoints/10").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[len(raw) // 2] ^= 1
    largest.write_bytes(raw)
    launching.launch(records, [_run(tmp_path, **run)], devices=4, processes=2)
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["10"]
    _assert_same_run(tmp_path, alone)
