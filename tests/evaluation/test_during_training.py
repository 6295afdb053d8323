"""Evaluation of a run as it trains: its metrics, resumption, and failures that cost the evaluation only."""

import dataclasses
import functools
import os
import shutil
import signal
import time

import jax
import labelled
import numpy as np
import pytest
import tiny
from evaluation_networks import write_networks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowley_jax.common.stop_signal import StopSignal
from flowley_jax.data.components import Components
from flowley_jax.errors import FlowleyError
from flowley_jax.evaluation import decoded_tagger, during_training
from flowley_jax.evaluation.during_training import train
from flowley_jax.evaluation.tagger import load_tagger
from flowley_jax.evaluation.tagger_training import TaggerTraining, train_tagger
from flowley_jax.flow import solver
from flowley_jax.interop.weight_files import read_notes
from flowley_jax.sampling import Sampler
from flowley_jax.training import loop
from flowley_jax.training.metrics import Progress, read_history

TAGGER_METRICS = {
    *("eval/FD-TAGGER", "eval/KAD-TAGGER", "eval/KL-TAGGER-softmax"),
    *("eval/ISC-TAGGER-mean", "eval/ISC-TAGGER-std"),
    *("eval/class-accuracy", "eval/material-accuracy", "eval/motion-accuracy"),
}


@pytest.fixture(scope="module", autouse=True)
def short_training():
    """Train taggers for two epochs; these tests ask for no skill."""
    short = functools.partial(train_tagger, training=TaggerTraining(epochs=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoded_tagger, "train_tagger", short)
        yield


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return labelled.write_labelled_records(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return write_networks(tmp_path_factory.mktemp("networks"))


def _config(records, *, steps=4, **changes):
    config = tiny.experiment(records, steps=steps)
    changes = {"evaluate_every": 2, "evaluate_clips": 10, "valid_every": 1000, **changes}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


@pytest.fixture(scope="module")
def whole_run(records, tmp_path_factory):
    """An uninterrupted run of five steps, which ends between two evaluations."""
    workdir = tmp_path_factory.mktemp("whole")
    assert train(_config(records, steps=5), workdir).step == 5
    return workdir


@pytest.fixture
def workdir(whole_run, tmp_path):
    """A folder that holds a trained tagger only."""
    shutil.copytree(whole_run / "evaluation", tmp_path / "run" / "evaluation")
    return tmp_path / "run"


def _scores(workdir):
    """Return the metrics of evaluations by step."""
    rows = [row for row in read_history(workdir) if any(name.startswith("eval/") for name in row)]
    return {row["step"]: {name: value for name, value in row.items() if name != "step"} for row in rows}


def test_metrics_are_logged_at_every_evaluation_and_at_the_end(whole_run):
    scores = _scores(whole_run)
    assert list(scores) == [2, 4, 5]
    for metrics in scores.values():
        assert metrics.keys() >= TAGGER_METRICS and np.isfinite(list(metrics.values())).all()
    assert scores[2] != scores[4]
    board = EventAccumulator(str(whole_run / "tensorboard"))
    board.Reload()
    shown = {event.step: event.value for event in board.Scalars("eval/FD-TAGGER")}
    assert shown == pytest.approx({step: metrics["eval/FD-TAGGER"] for step, metrics in scores.items()})


def test_the_tagger_is_kept_with_what_it_was_trained_on(whole_run):
    path = whole_run / decoded_tagger.TAGGER_FILE
    assert load_tagger(path)[0].config.classes == tuple(sorted(labelled.LABELS))
    assert len(read_notes(path)["trained_on"]) == 64


def test_a_resumed_run_has_the_same_metrics_and_trains_no_tagger(whole_run, records, tmp_path, monkeypatch):
    original = Progress.show

    def signalled(self, step, values):
        original(self, step, values)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "show", signalled)
    assert train(_config(records, steps=5), tmp_path).step == 3
    monkeypatch.setattr(Progress, "show", original)
    monkeypatch.setattr(decoded_tagger, "train_tagger", lambda *args: pytest.fail("trained once more"))
    assert train(_config(records, steps=5), tmp_path).step == 5
    assert _scores(tmp_path) == _scores(whole_run)


def test_a_tagger_of_other_labels_is_replaced(workdir, tmp_path):
    others = labelled.write_labelled_records(tmp_path / "others", labels=("saw", "hammer"))
    evaluation = during_training.start_evaluation(_config(others), workdir, Components.load(others))
    assert evaluation.classes == ("hammer", "saw")
    assert load_tagger(workdir / decoded_tagger.TAGGER_FILE)[0].config.classes == ("hammer", "saw")


def test_the_latents_of_the_reference_are_at_no_distance(whole_run, records, workdir, monkeypatch):
    evaluation = during_training.start_evaluation(_config(records), workdir, Components.load(records))
    latents = iter(np.split(np.stack([clip["audio_mean"] for clip in evaluation.own]), [8]))
    original = during_training.sample_latents

    def real(*args, **kwargs):
        solution = original(*args, **kwargs)
        rows = next(latents)
        return solution._replace(latent=solution.latent.at[: len(rows)].set(rows))

    monkeypatch.setattr(during_training, "sample_latents", real)
    scores = evaluation(Sampler.from_run(whole_run).variables, stop=lambda: False)
    assert scores["FD-TAGGER"] == pytest.approx(0.0, abs=1e-4)
    assert scores["KL-TAGGER-softmax"] == pytest.approx(0.0, abs=1e-6)


def test_networks_of_a_folder_score_sounds_and_captions(networks, tmp_path, caplog):
    records = labelled.write_labelled_records(tmp_path / "labelled", latents=63, labels=("",))
    config = _config(records, steps=1, evaluate_networks=str(networks))
    with caplog.at_level("INFO", logger="flowley_jax"):
        assert train(config, tmp_path / "run").step == 1
    assert "evaluation without the embedded tagger: it needs 32 training clips" in caplog.text
    assert _scores(tmp_path / "run")[1].keys() >= {
        *(f"eval/{distance}-{network}" for distance in ("FD", "KAD") for network in ("PANN", "VGG", "PASST")),
        *(f"eval/KL-{network}-softmax" for network in ("PANNS", "PASST")),
        *(f"eval/ISC-{network}-{part}" for network in ("PANNS", "PASST") for part in ("mean", "std")),
        "eval/LAION-CLAP-Score",
    }


def test_a_sound_that_is_too_short_for_a_network_is_refused_at_the_start(networks, records, workdir):
    config = _config(records, evaluate_networks=str(networks))
    with pytest.raises(FlowleyError, match=r"vggish cannot take the sounds: VGGish needs at least"):
        train(config, workdir)


def test_an_evaluation_without_labels_and_networks_is_refused_at_the_start(tmp_path):
    records = tiny.write_records(tmp_path / "records")
    with pytest.raises(
        FlowleyError, match=r"evaluate_every=2 has nothing to score sounds with: name bundles"
    ):
        train(_config(records), tmp_path / "run")
    with pytest.raises(FlowleyError, match="holds none of the bundles clap, "):
        train(_config(records, evaluate_networks=str(tmp_path)), tmp_path / "run")


def test_an_evaluation_without_an_evaluator_is_refused(records, tmp_path):
    with pytest.raises(FlowleyError, match=r"train\.evaluate_every=2 needs metrics"):
        loop.train(_config(records), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_solver_that_does_not_finish_costs_the_evaluation_only(records, workdir, monkeypatch, caplog):
    monkeypatch.setattr(solver, "MAX_ADAPTIVE_STEPS", 1)
    config = _config(records, steps=2)
    stiff = solver.SolverConfig(name="dopri5", rtol=1e-9, atol=1e-9)
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, solver=stiff))
    assert train(config, workdir).step == 2
    assert "step 2: no evaluation: the solver dopri5 did not reach t = 1" in caplog.text
    assert not _scores(workdir)


def test_too_little_memory_costs_the_evaluation_only(records, workdir, monkeypatch, caplog):
    def failing(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")

    monkeypatch.setattr(during_training, "sample_latents", failing)
    assert train(_config(records, steps=2), workdir).step == 2
    assert "step 2: no evaluation: the devices have too little memory (RESOURCE_EXHAUSTED" in caplog.text


def test_a_signal_costs_the_evaluation_and_stores_the_step(records, workdir, monkeypatch):
    stops = []

    class RecordedStop(StopSignal):
        def __enter__(self):
            stops.append(self)
            return super().__enter__()

    original = during_training.sample_latents

    def signalled(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 60
        # The signal's receiver is a thread.
        while not stops[0].requested and time.monotonic() < deadline:
            time.sleep(0.01)
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "StopSignal", RecordedStop)
    monkeypatch.setattr(during_training, "sample_latents", signalled)
    outcome = train(_config(records), workdir)
    assert outcome.interrupted and outcome.step == 2
    assert not _scores(workdir)
    assert (workdir / "checkpoints" / "2").is_dir()
