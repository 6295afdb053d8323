"""The training loop: exact resumption, interruption, the files of a run, and its errors."""

import contextlib
import dataclasses
import gc
import itertools
import json
import os
import shutil
import signal
import time
import weakref

import jax
import numpy as np
import pytest
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowley_jax.common.jsonl import append_json
from flowley_jax.common.locks import LOCK_FILE, lock_folder
from flowley_jax.common.stop_signal import StopSignal
from flowley_jax.config import EmaConfig, FlowConfig, MeshConfig, OptimConfig, SampleConfig, StartConfig
from flowley_jax.data.components import Components
from flowley_jax.errors import FlowleyError
from flowley_jax.flow import solver
from flowley_jax.flow.losses import LossConfig
from flowley_jax.runs import snapshots as snapshots_module
from flowley_jax.runs import workdir_lock
from flowley_jax.runs.snapshots import EmaSnapshots
from flowley_jax.runs.workdir import BASE, open_workdir, read_config
from flowley_jax.sampling import Sampler
from flowley_jax.training import loop, sharding, timing, validation
from flowley_jax.training.checkpoint import RunCheckpoints
from flowley_jax.training.loop import train
from flowley_jax.training.metrics import NonFiniteLossError, Progress, read_history


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return tiny.write_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def whole_run(records, tmp_path_factory):
    """An uninterrupted run of six steps."""
    workdir = tmp_path_factory.mktemp("whole")
    assert train(tiny.experiment(records), workdir).step == 6
    return workdir


def _final_state(workdir, records, **changes):
    with RunCheckpoints(workdir, keep=2) as checkpoints:
        return checkpoints.restore(tiny.abstract_state(tiny.experiment(records, **changes)))


def _with_train(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def _losses(workdir):
    return [(row["step"], row["train/loss"]) for row in read_history(workdir) if "train/loss" in row]


def _assert_same_run(one, other, records, **changes):
    assert _losses(one) == _losses(other)
    (state, data), (other_state, other_data) = (_final_state(run, records, **changes) for run in (one, other))
    assert data == other_data
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(other_state), strict=True):
        np.testing.assert_array_equal(leaf, expected)


@pytest.mark.parametrize("first_part", [1, 4])
def test_a_resumed_run_equals_an_uninterrupted_run_bit_for_bit(whole_run, records, tmp_path, first_part):
    train(tiny.experiment(records, steps=first_part), tmp_path)
    train(tiny.experiment(records), tmp_path)
    _assert_same_run(tmp_path, whole_run, records)


def test_a_resumed_run_with_muon_and_alignment_equals_an_uninterrupted_one(records, tmp_path):
    changes = {
        "optim": OptimConfig(kind="muon", learning_rate=5e-3, warmup_steps=2),
        "flow": FlowConfig(loss=LossConfig(alignment_weight=0.5)),
    }
    for steps, folder in ((4, "whole"), (2, "resumed"), (4, "resumed")):
        train(tiny.experiment(records, steps=steps, **changes), tmp_path / folder)
    _assert_same_run(tmp_path / "whole", tmp_path / "resumed", records, **changes)


def test_a_signal_finishes_the_step_and_resuming_is_exact(whole_run, records, tmp_path, monkeypatch):
    original = Progress.show

    def signalled(self, step, values):
        original(self, step, values)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "show", signalled)
    outcome = train(tiny.experiment(records), tmp_path)
    assert outcome.interrupted and outcome.step == 3
    monkeypatch.setattr(Progress, "show", original)
    outcome = train(tiny.experiment(records), tmp_path)
    assert not outcome.interrupted
    _assert_same_run(tmp_path, whole_run, records)


def test_a_crashed_run_resumes_from_the_last_checkpoint_and_repeats_the_same_steps(
    whole_run, records, tmp_path, monkeypatch
):
    original = Progress.show

    def crash(self, step, values):
        original(self, step, values)
        if step == 5:
            raise RuntimeError("power cut")

    monkeypatch.setattr(Progress, "show", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        train(tiny.experiment(records), tmp_path)
    monkeypatch.setattr(Progress, "show", original)
    train(tiny.experiment(records), tmp_path)
    _assert_same_run(tmp_path, whole_run, records)


def test_a_finished_run_is_left_unchanged(whole_run, records):
    before = (whole_run / "metrics.jsonl").read_bytes()
    outcome = train(tiny.experiment(records), whole_run)
    assert outcome.step == 6 and not outcome.interrupted
    assert (whole_run / "metrics.jsonl").read_bytes() == before


def test_metrics_contain_losses_speed_and_validation(whole_run):
    history = read_history(whole_run)
    logged = [row for row in history if "train/loss" in row]
    assert [row["step"] for row in logged] == [1, 2, 3, 4, 5, 6]
    for row in logged:
        assert row["train/loss"] == pytest.approx(
            row["train/velocity_loss"] + 0.5 * row["train/direction_loss"]
        )
        assert row["step_time"] > row["data_wait"] >= 0
        assert row["examples_per_second"] == pytest.approx(4 / row["step_time"])
    assert [row["step"] for row in history if "valid/loss" in row] == [4, 6]
    assert all(np.isfinite(value) for row in history for value in row.values())


def test_training_lowers_the_loss(records, tmp_path):
    config = tiny.experiment(records, steps=60, ema=EmaConfig(snapshot_every=100))
    train(_with_train(config, checkpoint_every=100, valid_every=100), tmp_path)
    losses = [loss for _, loss in _losses(tmp_path)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])


def test_tensorboard_has_scalars_pictures_and_sounds(records, tmp_path):
    config = tiny.experiment(records, steps=2)
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, preview_every=2)), tmp_path)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    assert "train/loss" in tags["scalars"] and "valid/loss" in tags["scalars"]
    assert {"generated/0/mel", "real/0/mel"} <= set(tags["images"])
    assert {"generated/0/sound", "real/0/sound"} <= set(tags["audio"])
    losses = {event.step: event.value for event in board.Scalars("train/loss")}
    assert losses == pytest.approx(dict(_losses(tmp_path)), rel=1e-6)


def test_snapshots_give_averages_of_any_length(whole_run, records):
    state, _ = _final_state(whole_run, records)
    with EmaSnapshots(whole_run) as snapshots:
        assert snapshots.steps == [3, 6]
        stored = snapshots.synthesise(state.parameters, sigma_rels=(0.05, 0.1), sigma_rel=0.1)
        between = snapshots.synthesise(state.parameters, sigma_rels=(0.05, 0.1), sigma_rel=0.08)
        constants = snapshots.constants(state.constants)
    for leaf, expected in zip(jax.tree.leaves(stored), jax.tree.leaves(state.averages[1]), strict=True):
        np.testing.assert_array_equal(leaf, expected)
    assert jax.tree.structure(between) == jax.tree.structure(state.parameters)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(between))
    np.testing.assert_array_equal(constants["latent_std"][...], Components.load(records).latent_std)


def test_averages_are_synthesised_with_one_snapshot_in_memory(whole_run, records, monkeypatch):
    loaded = []
    original = snapshots_module.load_item

    def load_item(*args):
        gc.collect()
        assert not any(leaf() is not None for leaf in loaded), "an earlier snapshot is still held"
        leaves = original(*args)
        loaded.extend(weakref.ref(leaf) for leaf in leaves.values())
        return leaves

    monkeypatch.setattr(snapshots_module, "load_item", load_item)
    like = tiny.abstract_state(tiny.experiment(records)).parameters
    with EmaSnapshots(whole_run) as snapshots:
        snapshots.synthesise(like, sigma_rels=(0.05, 0.1), sigma_rel=0.08)
    assert len(loaded) == 4 * len(jax.tree.leaves(like))


def _spoil(monkeypatch, spoils):
    """Replace the latents of the batches whose numbers (from 1) `spoils` selects by NaN."""
    original = sharding.Layout.shard_local_rows
    numbers = itertools.count(1)

    def spoiled(self, batch):
        if spoils(next(numbers)):
            batch = {**batch, "audio_mean": np.full_like(batch["audio_mean"], np.nan)}
        return original(self, batch)

    monkeypatch.setattr(sharding.Layout, "shard_local_rows", spoiled)


def test_non_finite_steps_are_skipped_and_end_the_run(records, tmp_path, monkeypatch, caplog):
    _spoil(monkeypatch, lambda number: number >= 2)
    config = _with_train(tiny.experiment(records), max_skipped=3, checkpoint_every=1, valid_every=1000)
    with pytest.raises(NonFiniteLossError, match=r"last 3 steps up to 4 were skipped .* those of step 1,"):
        train(config, tmp_path)
    assert [record.message[:15] for record in caplog.records if "skipped" in record.message] == [
        "step 2 skipped:",
        "step 3 skipped:",
        "step 4 skipped:",
    ]
    rows = {row["step"]: row for row in read_history(tmp_path)}
    assert "train/loss" in rows[1] and "train/loss" not in rows[2]
    assert [rows[step]["skipped_steps"] for step in (1, 2, 3)] == [0, 1, 2]
    state, _ = _final_state(tmp_path, records)
    shutil.rmtree(tmp_path / "checkpoints" / "3")
    before, _ = _final_state(tmp_path, records)
    assert int(state.step) == int(before.step) + 1 == 3
    for leaf, expected in zip(jax.tree.leaves(state)[1:], jax.tree.leaves(before)[1:], strict=True):
        np.testing.assert_array_equal(leaf, expected)


def test_a_single_bad_batch_is_skipped(records, tmp_path, monkeypatch):
    _spoil(monkeypatch, lambda number: number == 2)
    assert train(tiny.experiment(records, steps=4), tmp_path).step == 4
    rows = [row for row in read_history(tmp_path) if "skipped_steps" in row]
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1, 1]
    assert ["train/loss" in row for row in rows] == [True, False, True, True]
    state, _ = _final_state(tmp_path, records)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_metrics_contain_step_times_and_update_ratios(whole_run):
    rows = [row for row in read_history(whole_run) if "train/loss" in row]
    blocks = {name for name in rows[0] if name.startswith("update_ratio/")}
    assert {
        "update_ratio/multi_stream/0",
        "update_ratio/single_stream/0",
        "update_ratio/final_conv",
    } <= blocks
    for row in rows:
        assert row["step_time_p50"] <= row["step_time_p90"] <= row["step_time_p99"]
        assert all(row[name] > 0 for name in blocks)
    # No gradient passes a last layer of zeros: at first only weight decay moves the blocks.
    assert rows[0]["update_ratio/multi_stream/0"] == pytest.approx(5e-3 / 3 * 1e-6, rel=1e-3)


def test_every_second_of_all_starts_is_charged_to_one_kind(records, tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(timing.time, "time", lambda: now[0])

    def spend(account, **seconds):
        for kind, amount in seconds.items():
            now[0] += amount
            account.charge(kind)

    account = timing.Timing(tmp_path)
    spend(account, start=10, compile=5, data=1, step=4)
    account.write(2)
    spend(account, step=7)  # lost by a crash
    now[0] += 20
    account = timing.Timing(tmp_path)
    spend(account, start=10)
    for step, seconds in ((2, 4), (3, 6)):
        now[0] += seconds
        account.charge_step(step)
    assert account.goodput["seconds/repeated"] == 4
    assert account.goodput["seconds/down"] == 27
    assert account.goodput["seconds/step"] == 10
    assert account.goodput["goodput"] == 10 / 40
    for damaged in ("{", '{"seconds": 3}', '{"seconds": {}, "furthest_step": "x", "written": 1}'):
        (tmp_path / "goodput.json").write_text(damaged)
        assert timing.Timing(tmp_path).goodput["goodput"] == 0.0


def test_goodput_sums_continue_over_starts(records, tmp_path):
    started = time.time()
    train(tiny.experiment(records, steps=2), tmp_path)
    first = json.loads((tmp_path / "goodput.json").read_text())
    train(tiny.experiment(records, steps=4), tmp_path)
    second = json.loads((tmp_path / "goodput.json").read_text())
    assert second["furthest_step"] == 4
    assert all(second["seconds"][kind] >= first["seconds"][kind] for kind in first["seconds"])
    assert sum(second["seconds"].values()) == pytest.approx(second["written"] - started, abs=0.5)
    assert second["seconds"]["step"] > 0 and second["seconds"]["repeated"] == 0
    assert second["seconds"]["reports"] > 0 and second["seconds"]["compile"] > first["seconds"]["compile"]


def test_the_requested_steps_are_profiled(records, tmp_path):
    config = _with_train(tiny.experiment(records, steps=3), profile_from=2, profile_steps=1)
    train(config, tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_checkpoint_is_stored_when_the_last_one_is_too_old(records, tmp_path):
    config = _with_train(tiny.experiment(records, steps=3), checkpoint_every=100, checkpoint_minutes=1e-9)
    train(_with_train(config, keep_checkpoints=9), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2", "3"]


def test_a_different_configuration_is_refused_with_every_difference(whole_run, records):
    before = (whole_run / "config.json").read_bytes()
    config = dataclasses.replace(
        tiny.experiment(records), seed=1, model=dataclasses.replace(tiny.MODEL, width=32)
    )
    with pytest.raises(FlowleyError, match=r"model\.width was 16, is now 32; seed was 0, is now 1"):
        train(config, whole_run)
    assert (whole_run / "config.json").read_bytes() == before


def test_a_start_that_stored_no_step_does_not_bind_the_folder(records, tmp_path):
    wrong = tiny.experiment(records, steps=2, start=StartConfig(weights=str(tmp_path / "misspelt.pth")))
    with pytest.raises(FlowleyError, match=r"misspelt\.pth: no such file"):
        train(wrong, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]
    open_workdir(tmp_path / "run", wrong, Components.load(records), records)
    (tmp_path / "run" / BASE).write_bytes(b"left by another start")
    right = tiny.experiment(records, steps=2)
    assert train(right, tmp_path / "run").step == 2
    assert read_config(tmp_path / "run") == right and not (tmp_path / "run" / BASE).exists()


def test_fewer_steps_than_are_stored_are_refused(whole_run, records):
    before = (whole_run / "config.json").read_bytes()
    with pytest.raises(FlowleyError, match=r"is already at step 6, beyond train\.steps=5"):
        train(tiny.experiment(records, steps=5), whole_run)
    assert (whole_run / "config.json").read_bytes() == before


def test_a_different_data_set_is_refused(whole_run, records, tmp_path):
    other = tiny.write_records(tmp_path / "other")
    components = json.loads((other / "components.json").read_text())
    (other / "components.json").write_text(json.dumps({**components, "latent_std": [2.0] * 6}))
    before = (whole_run / "config.json").read_bytes()
    with pytest.raises(FlowleyError, match="not the data set that"):
        train(tiny.experiment(other), whole_run)
    assert (whole_run / "config.json").read_bytes() == before


def test_records_without_a_valid_split_are_trained_without_validation(records, tmp_path, caplog):
    without = tmp_path / "without"
    shutil.copytree(records, without)
    info = next(without.rglob("dataset_info.json"))
    tree = json.loads(info.read_text())
    tree["splits"] = [split for split in tree["splits"] if split["name"] != "valid"]
    info.write_text(json.dumps(tree))
    with caplog.at_level("INFO", logger="flowley_jax"):
        assert train(tiny.experiment(without, steps=4), tmp_path / "run").step == 4
    assert f"{without} has no valid split" in caplog.text


def test_likely_mistakes_are_logged_at_the_start(tmp_path, caplog):
    config = tiny.experiment(tiny.write_records(tmp_path / "few", count=3), steps=1)
    (tmp_path / "run/letters").mkdir(parents=True)
    with caplog.at_level("WARNING", logger="flowley_jax"):
        assert train(config, tmp_path / "run").step == 1
    assert "has only 3 training clips: every batch of 4 repeats some of them" in caplog.text
    assert f"{tmp_path / 'run'} already contains 1 other files, such as letters" in caplog.text


# Orbax leaves coroutines behind when it fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["one bit", "cut", "no metadata"])
def test_a_damaged_checkpoint_is_moved_away_and_the_previous_one_is_used(
    whole_run, records, tmp_path, damage, caplog
):
    shutil.copytree(whole_run, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "6"
    largest = max(
        (path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    if damage == "one bit":
        raw = bytearray(largest.read_bytes())
        raw[len(raw) // 2] ^= 1
        largest.write_bytes(raw)
    elif damage == "cut":
        largest.write_bytes(largest.read_bytes()[:1000])
    else:
        (newest / "state" / "_METADATA").unlink()
    assert int(_final_state(tmp_path / "run", records)[0].step) == 4
    assert "checkpoints/6: damaged" in caplog.text and "resuming from the previous checkpoint" in caplog.text
    assert (tmp_path / "run" / "damaged" / "6").is_dir()
    if damage == "one bit":
        train(tiny.experiment(records), tmp_path / "run")
        _assert_same_run(tmp_path / "run", whole_run, records)
    gc.collect()


# Orbax leaves coroutines behind when it fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_files_are_named_in_one_short_line(whole_run, records, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    for folder in ("checkpoints", "ema"):
        for path in (tmp_path / "run" / folder).rglob("d/*"):
            path.write_bytes(path.read_bytes()[:100])
    config = tiny.experiment(records, steps=8)
    with pytest.raises(FlowleyError, match=r"run/checkpoints/6: damaged") as caught:
        train(config, tmp_path / "run")
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    assert "no earlier one is intact either. Put one from a backup" in str(caught.value)
    assert not (tmp_path / "run" / "damaged").exists()
    with pytest.raises(FlowleyError, match=r"run/ema/6: damaged") as caught:
        Sampler.from_run(tmp_path / "run")
    assert len(str(caught.value)) < 400
    gc.collect()


@pytest.fixture
def unreadable(whole_run, tmp_path):
    """A run whose newest checkpoint cannot be opened, and the file that is the reason."""
    run = shutil.copytree(whole_run, tmp_path / "run")
    path = max((run / "checkpoints/6").rglob("d/*"), key=lambda file: file.stat().st_size)
    intact = path.rename(tmp_path / "intact")
    # A link to itself: an error of the file system, for root too.
    path.symlink_to(path)
    return run, path, intact


def test_a_checkpoint_that_cannot_be_read_now_is_not_moved(unreadable, records, monkeypatch):
    run, _, _ = unreadable
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(FlowleyError) as caught:
        _final_state(run, records)
    assert "checkpoints/6: cannot be read now (" in str(caught.value)
    assert "Nothing was moved" in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "6"]
    assert not (run / "damaged").exists()
    assert waits


def test_a_checkpoint_that_can_be_read_again_is_used(unreadable, whole_run, records, monkeypatch, caplog):
    run, path, intact = unreadable

    def repair(seconds):
        if intact.exists():
            path.unlink()
            intact.rename(path)

    monkeypatch.setattr(time, "sleep", repair)
    assert int(_final_state(run, records)[0].step) == 6
    assert "trying again" in caplog.text
    _assert_same_run(run, whole_run, records)


def test_half_written_checkpoints_are_removed(whole_run, records, tmp_path):
    run = shutil.copytree(whole_run, tmp_path / "run")
    left = [
        run / "checkpoints/8.orbax-checkpoint-tmp",
        run / "ema/9.orbax-checkpoint-tmp",
        run / ".partial-0123456789abcdef.json",
    ]
    for folder in left[:2]:
        (folder / "state").mkdir(parents=True)
    left[2].write_text("{")
    assert train(tiny.experiment(records), run).step == 6
    assert not any(path.exists() for path in left)
    _assert_same_run(run, whole_run, records)


def test_a_second_training_of_a_folder_waits_and_is_then_refused(
    whole_run, records, tmp_path, monkeypatch, caplog
):
    run = shutil.copytree(whole_run, tmp_path / "run")
    before = (run / "config.json").read_bytes()
    monkeypatch.setattr(workdir_lock, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(workdir_lock, "_POLL_SECONDS", 0.05)
    config = tiny.experiment(records, steps=8)
    with (
        lock_folder(run),
        caplog.at_level("INFO", logger="flowley_jax"),
        pytest.raises(FlowleyError, match=rf"run: another process is writing to it \(process {os.getpid()}"),
    ):
        train(config, run)
    assert "waiting up to" in caplog.text
    assert (run / "config.json").read_bytes() == before
    assert train(config, run).step == 8


def test_a_training_waits_for_the_one_that_it_replaces(whole_run, records, tmp_path, monkeypatch):
    run = shutil.copytree(whole_run, tmp_path / "run")
    with contextlib.ExitStack() as predecessor:
        predecessor.enter_context(lock_folder(run))
        monkeypatch.setattr(workdir_lock.time, "sleep", lambda seconds: predecessor.close())
        assert train(tiny.experiment(records, steps=7), run).step == 7


def test_metrics_survive_a_cut_at_any_byte(whole_run, tmp_path):
    whole = (whole_run / "metrics.jsonl").read_bytes()
    rows = read_history(whole_run)
    metrics = tmp_path / "metrics.jsonl"
    # Every byte of the last two rows, and some before.
    start = len(b"".join(whole.splitlines(keepends=True)[:-2]))
    for end in [*range(0, start, 97), *range(start, len(whole))]:
        metrics.write_bytes(whole[:end])
        found = read_history(tmp_path)
        assert found == rows[: len(found)] and len(found) >= whole[:end].count(b"\n")
        append_json(metrics, {"step": 7})
        assert read_history(tmp_path) == [*found, {"step": 7}]


def test_a_preview_whose_solver_does_not_finish_costs_the_preview_only(
    records, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(solver, "MAX_ADAPTIVE_STEPS", 1)
    config = tiny.experiment(
        records,
        steps=3,
        sample=SampleConfig(solver=solver.SolverConfig(name="dopri5", rtol=1e-9, atol=1e-9)),
    )
    assert train(_with_train(config, preview_every=2), tmp_path).step == 3
    assert "step 2: no preview: the solver dopri5 did not reach t = 1" in caplog.text


@pytest.fixture
def signalled(monkeypatch):
    """Return a function that makes another one send this process a signal first, when it is called first."""
    stops = []

    class RecordedStop(StopSignal):
        def __enter__(self):
            stops.append(self)
            return super().__enter__()

    def wrap(original):
        def replaced(*args, **kwargs):
            if not stops[0].requested:
                os.kill(os.getpid(), signal.SIGTERM)
                deadline = time.monotonic() + 60
                # The signal's receiver is a thread.
                while not stops[0].requested and time.monotonic() < deadline:
                    time.sleep(0.01)
            return original(*args, **kwargs)

        return replaced

    monkeypatch.setattr(loop, "StopSignal", RecordedStop)
    return wrap


@pytest.mark.parametrize("during", ["validation", "preview"])
def test_a_signal_before_a_report_stores_the_step_without_it(
    records, tmp_path, monkeypatch, signalled, during
):

    # The first batch of the validation; and the end of the one before the preview.
    name = "eval_batches" if during == "validation" else "_mean_losses"
    monkeypatch.setattr(validation, name, signalled(getattr(validation, name)))
    sampled = []
    monkeypatch.setattr(validation, "sample_latents", lambda *args, **kwargs: sampled.append(True))
    config = _with_train(tiny.experiment(records), valid_every=3, preview_every=3, checkpoint_every=100)
    outcome = train(config, tmp_path)
    assert outcome.interrupted and outcome.step == 3 and not sampled
    reported = [row["step"] for row in read_history(tmp_path) if "valid/loss" in row]
    assert reported == ([] if during == "validation" else [3])
    assert int(_final_state(tmp_path, records)[0].step) == 3


def test_a_signal_while_the_last_checkpoint_is_written_does_not_end_the_run(
    records, tmp_path, monkeypatch, signalled
):
    earlier = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the signal was not received by the run"))
    monkeypatch.setattr(RunCheckpoints, "__exit__", signalled(RunCheckpoints.__exit__))
    try:
        outcome = train(tiny.experiment(records, steps=2), tmp_path)
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert outcome.step == 2 and not outcome.interrupted
    assert int(_final_state(tmp_path, records)[0].step) == 2


def test_a_changed_length_of_a_cosine_run_is_logged(records, tmp_path, caplog):
    def config(steps):
        return tiny.experiment(records, steps=steps, optim=OptimConfig(schedule="cosine", warmup_steps=1))

    components = Components.load(records)
    open_workdir(tmp_path / "run", config(2), components, records)
    (tmp_path / "run/checkpoints/1").mkdir(parents=True)
    with caplog.at_level("WARNING", logger="flowley_jax"):
        open_workdir(tmp_path / "run", config(2), components, records)
        assert not caplog.records
        open_workdir(tmp_path / "run", config(3), components, records)
    assert "train.steps was 2 and is now 3" in caplog.text


def test_records_of_other_sizes_are_refused(records, tmp_path):
    config = tiny.experiment(records, model=dataclasses.replace(tiny.MODEL, audio_dim=7, video_fps=8.0))
    with pytest.raises(FlowleyError, match=r"model\.audio_dim=7, records have 6; model\.video_fps=8"):
        train(config, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_checkpoint_of_other_shapes_is_refused_with_the_first_arrays(whole_run, records):
    config = tiny.experiment(records)
    config = dataclasses.replace(config, model=dataclasses.replace(tiny.MODEL, multi_depth=2))
    shapes = tiny.abstract_state(config)
    with (
        RunCheckpoints(whole_run, keep=2) as checkpoints,
        pytest.raises(FlowleyError, match=r"checkpoints/6: belongs to another network; 165 arrays") as caught,
    ):
        checkpoints.restore(shapes)
    message = str(caught.value)
    assert "\n" not in message and message.endswith("; and 162 more") and len(message) < 500
    assert "averages/0/multi_stream/1/" in message and "found none, expected float32[" in message
    assert not (whole_run / "damaged").exists()


def test_a_refused_mesh_does_not_claim_the_folder(tmp_path):
    config = tiny.experiment(tiny.write_records(tmp_path / "records"), steps=1)
    with pytest.raises(FlowleyError, match=r"mesh\.data=2"):
        train(dataclasses.replace(config, mesh=MeshConfig(data=2)), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
