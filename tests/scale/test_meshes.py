"""A run gives the same losses, state and data order on any mesh and in any number of processes.

`make test-scale` tests one mesh of each kind, and `make test-soak` the others.
"""

import shutil
from pathlib import Path

import launching
import numpy as np
import pytest
import tiny

from flowley_jax.training.metrics import read_history

pytestmark = pytest.mark.scale

STEPS = 20
HALF = 10
SPLIT = {"fsdp": 2, "tensor": 2}
TRAIN = {"valid_every": 10, "checkpoint_every": 5}
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
def single(records, tmp_path_factory):
    """Train on one device, in one process, with the default way to compute a step."""
    workdir = tmp_path_factory.mktemp("single")
    launching.launch(records, [_run(workdir)], devices=1)
    return workdir


@pytest.fixture(scope="module")
def half(records, tmp_path_factory):
    """Train the first steps of the same run on eight devices of two processes."""
    workdir = tmp_path_factory.mktemp("half")
    launching.launch(records, [_run(workdir, steps=HALF, mesh=SPLIT)], devices=4, processes=2)
    return workdir


def _assert_same_run(workdir, single, *, steps=STEPS):
    logged, losses = _losses(workdir)
    assert logged == list(range(1, steps + 1))
    np.testing.assert_allclose(losses, _losses(single)[1][:steps], rtol=1e-5)


@pytest.mark.parametrize(
    ("devices", "runs"),
    [
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
        pytest.param(
            1,
            {
                "again": {},
                "with workers": {"data": {"num_workers": 2}},
                "accumulated": {"train": {"accumulation": 4}},
                "scanned": {"model": {"layers": "scanned", "remat": "block"}},
            },
            marks=SOAK,
        ),
        pytest.param(2, {"fsdp 2": {"mesh": {"fsdp": 2}}}, marks=SOAK),
        pytest.param(
            4, {"data 2, tensor 2": {"mesh": {"tensor": 2}, "train": {"accumulation": 2}}}, marks=SOAK
        ),
        pytest.param(8, {"data 8": {}, "fsdp 8": {"mesh": {"fsdp": 8}}}, marks=SOAK),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else str(value),
)
def test_losses_do_not_depend_on_the_mesh(devices, runs, records, single, tmp_path):
    configured = {name: _run(tmp_path / name, **changes) for name, changes in runs.items()}
    launching.launch(records, list(configured.values()), devices=devices)
    for name in configured:
        _assert_same_run(tmp_path / name, single)


def test_losses_do_not_depend_on_the_processes(half, single):
    _assert_same_run(half, single, steps=HALF)


@pytest.mark.soak
@pytest.mark.parametrize("mesh", [{}, {"fsdp": 8}], ids=str)
def test_losses_do_not_depend_on_how_processes_share_the_mesh(mesh, records, single, tmp_path):
    launching.launch(records, [_run(tmp_path, mesh=mesh)], devices=4, processes=2)
    _assert_same_run(tmp_path, single)


def test_a_run_resumes_with_other_meshes_processes_and_workers(half, records, single, tmp_path):
    """Every stored state is restored bit for bit; later steps differ only by rounding."""
    workdir = shutil.copytree(half, tmp_path / "run")
    tensor = _run(workdir, steps=15, mesh={"tensor": 2}, data={"num_workers": 2})
    launching.launch(records, [tensor], devices=8)
    resumed = launching.leaves(records, _run(workdir), after=[_run(workdir)])
    _assert_same_run(workdir, single)
    whole = launching.leaves(records, _run(single))
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(resumed[name], value, rtol=2e-3, atol=2e-5, err_msg=name)


def test_a_checkpoint_is_the_same_on_a_different_mesh(half, records):
    stored = launching.leaves(records, _run(half))
    restored = launching.leaves(records, _run(half, mesh={"fsdp": 4}), devices=8)
    assert int(stored["step"]) == HALF
    assert restored.keys() == stored.keys()
    for name, value in stored.items():
        np.testing.assert_array_equal(restored[name], value, err_msg=name)


def test_adapters_do_not_depend_on_the_mesh(records, single, tmp_path):
    adapters = {"lora": {"rank": 2}, "start": {"weights": str(single)}}
    launching.launch(records, [_run(tmp_path / "single", **adapters)], devices=1)
    split = _run(tmp_path / "split", mesh=SPLIT, **adapters)
    launching.launch(records, [split], devices=4, processes=2)
    _assert_same_run(tmp_path / "split", tmp_path / "single")


def test_updates_of_muon_with_alignment_do_not_depend_on_the_mesh(records, tmp_path):
    muon = {"steps": HALF, "optim": {"kind": "muon"}, "loss": {"alignment_weight": 0.5}}
    launching.launch(records, [_run(tmp_path / "single", **muon)], devices=1)
    launching.launch(records, [_run(tmp_path / "split", mesh=SPLIT, **muon)], devices=8)
    _assert_same_run(tmp_path / "split", tmp_path / "single", steps=HALF)


def test_processes_agree_on_a_damaged_checkpoint(half, records, single, tmp_path):
    workdir = shutil.copytree(half, tmp_path / "run")
    files = [path for path in (workdir / f"checkpoints/{HALF}").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[len(raw) // 2] ^= 1
    largest.write_bytes(raw)
    launching.launch(records, [_run(workdir, mesh=SPLIT)], devices=4, processes=2)
    assert [path.name for path in (workdir / "damaged").iterdir()] == [str(HALF)]
    _assert_same_run(workdir, single)


def test_processes_read_again_together(half, records, single, tmp_path):
    workdir = shutil.copytree(half, tmp_path / "run")
    launching.launch(
        records, [_run(workdir, mesh=SPLIT, failing={"process": 1, "reads": 1})], devices=4, processes=2
    )
    assert not (workdir / "damaged").exists()
    _assert_same_run(workdir, single)


def test_a_checkpoint_that_one_process_cannot_read_ends_all(half, records, tmp_path):
    workdir = shutil.copytree(half, tmp_path / "run")
    run = _run(workdir, mesh=SPLIT, failing={"process": 1, "reads": 99})
    with launching.started(records, [run], devices=4, processes=2) as workers:
        outputs = [process.communicate(timeout=300)[0] for process in workers]
    assert all(process.returncode == 1 for process in workers)
    for output, reason in zip(
        outputs, ("another process cannot read it now", "Input/output error"), strict=True
    ):
        assert f"checkpoints/{HALF}: " in output and reason in output and "Nothing was moved" in output
    assert (workdir / f"checkpoints/{HALF}").is_dir() and not (workdir / "damaged").exists()
