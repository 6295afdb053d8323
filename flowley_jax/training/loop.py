"""The loop around the training step: data, logs, validation, checkpoints, interruption."""

import dataclasses
import logging
import math
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from flowley_jax.config import ExperimentConfig
from flowley_jax.data.parts import Parts
from flowley_jax.data.pipeline import eval_batches, train_batches
from flowley_jax.data.record import has_split
from flowley_jax.errors import FlowleyError
from flowley_jax.training import preview, processes
from flowley_jax.training import workdir as workdirs
from flowley_jax.training.checkpoint import EmaSnapshots, RunCheckpoints
from flowley_jax.training.optimizer import make_optimizer
from flowley_jax.training.reports import Reports
from flowley_jax.training.sharding import Layout, make_layout
from flowley_jax.training.state import TrainState, create_state
from flowley_jax.training.step import make_train_step, make_valid_step

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `train` ended: the last finished step, and whether a signal stopped it early."""

    step: int
    interrupted: bool


class NonFiniteLossError(FlowleyError):
    """The loss of a step was NaN or infinite; the last checkpoint holds the state before it."""


def train(config: ExperimentConfig, workdir: Path) -> Outcome:
    """Trains until `config.train.steps`, going on from the newest checkpoint in `workdir`.

    SIGTERM and Ctrl-C finish the current step, store it and return. The order inside the loop matters:
    a checkpoint is saved before the next batch is drawn, so that its data position is the one of the
    state.

    Raises:
      FlowleyError: records and model disagree about sizes, or the folder belongs to another run.
      NonFiniteLossError: names the first step whose loss was not finite.
    """
    records = Path(config.data.records)
    parts = Parts.load(records)
    _check_sizes(config, parts, records)
    workdirs.open_workdir(workdir, config, parts, records)
    validates = has_split(records, "valid")
    if not validates:
        log.info("%s has no valid split: no validation and no previews", records)

    layout = make_layout(config)
    optimizer = make_optimizer(config.optim, config.train.steps)
    graphdef, state = create_state(
        config, optimizer, layout, latent_mean=parts.latent_mean, latent_std=parts.latent_std
    )
    _tell_of_whole_weights(layout.left_whole(state.parameters))
    step_fn = make_train_step(config, graphdef, optimizer, layout)
    valid_fn = make_valid_step(config, graphdef, layout)
    rows, group = layout.rows(config.data.batch_size)
    batches = train_batches(
        records,
        batch_size=config.data.batch_size,
        seed=config.seed,
        rows=rows,
        group=group,
        num_workers=config.data.num_workers,
    )
    with (
        RunCheckpoints(workdir, keep=config.train.keep_checkpoints) as checkpoints,
        EmaSnapshots(workdir) as snapshots,
        _StopSignal() as stop,
    ):
        if checkpoints.latest_step is not None:
            state, data_state = checkpoints.restore(state)
            batches.set_state(data_state)
        first = step = int(state.step)
        log.info(
            "%s at step %d of %d in %s; %s parameters",
            "resuming" if first else "starting",
            first,
            config.train.steps,
            workdir,
            f"{sum(leaf.size for leaf in jax.tree.leaves(state.parameters)):,}",
        )
        window = _Window(config.data.batch_size)
        with Reports(workdir, first_step=first, last_step=config.train.steps) as reports:
            while step < config.train.steps and not stop.requested_at(step):
                started = time.perf_counter()
                batch = layout.place_rows(next(batches))
                waited = time.perf_counter() - started
                state, metrics = step_fn(state, batch)
                step += 1
                window.add(step, metrics, waited)
                if _due(step, config.train.log_every, config):
                    reports.training(step, window.close())
                if validates and _due(step, config.train.valid_every, config):
                    reports.validation(step, _validate(valid_fn, state, records, config, layout))
                    window.restart_clock()
                if validates and step % config.train.preview_every == 0:
                    preview.write(reports.writer, step, graphdef, state, layout, records, parts, config)
                    window.restart_clock()
                if _due(step, config.ema.snapshot_every, config):
                    window.check_finite()
                    snapshots.save(state, step)
                if _due(step, config.train.checkpoint_every, config):
                    window.check_finite()
                    checkpoints.save(step, state, batches.get_state())
            if stop.requested and step > first:
                window.check_finite()
                checkpoints.save(step, state, batches.get_state())
    interrupted = step < config.train.steps
    log.info("%s at step %d; checkpoints in %s", "stopped" if interrupted else "finished", step, workdir)
    return Outcome(step=step, interrupted=interrupted)


def _tell_of_whole_weights(names: list[str]) -> None:
    if names:
        log.warning("%d weights stay whole, which the mesh does not divide, such as %s", len(names), names[0])


def _check_sizes(config: ExperimentConfig, parts: Parts, records: Path) -> None:
    wanted = {
        "audio_dim": (config.model.audio_dim, parts.dims.audio_dim),
        "video_dim": (config.model.video_dim, parts.dims.video_dim),
        "text_dim": (config.model.text_dim, parts.dims.text_dim),
        "video_fps": (config.model.video_fps, parts.video_fps),
    }
    wrong = [
        f"model.{name}={mine}, records have {theirs}"
        for name, (mine, theirs) in wanted.items()
        if mine != theirs
    ]
    if wrong:
        raise FlowleyError(f"{records}: does not fit the model: {'; '.join(wrong)}")


def _due(step: int, every: int, config: ExperimentConfig) -> bool:
    return step % every == 0 or step == config.train.steps


def _validate(
    valid_fn, state: TrainState, records: Path, config: ExperimentConfig, layout: Layout
) -> dict[str, float]:
    sums: dict[str, float] = {}
    count = 0
    for index, batch in enumerate(eval_batches(records, "valid", batch_size=config.data.batch_size)):
        size = len(batch["text_len"])
        for name, value in jax.device_get(valid_fn(state, layout.place(batch), index)).items():
            sums[name] = sums.get(name, 0.0) + float(value) * size
        count += size
    return {f"valid/{name}": value / count for name, value in sums.items()}


class _Window:
    """Metrics since the last log line, left on the device until the window closes."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._metrics: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._waited = 0.0
        self._paused = 0.0
        self._started = time.perf_counter()

    def add(self, step: int, metrics: Mapping[str, jax.Array], waited: float) -> None:
        self._metrics.append((step, metrics))
        self._waited += waited

    def restart_clock(self) -> None:
        """Leaves what happened since the last log line out of the step time, when nothing was trained."""
        if not self._metrics:
            self._started = time.perf_counter()

    def check_finite(self) -> None:
        for step, metrics in self._metrics:
            loss = float(jax.device_get(metrics["loss"]))
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    f"the loss of step {step} is {loss}; the newest checkpoint is older and sound. Lower "
                    "optim.learning_rate, or look at the records of that step"
                )

    def close(self) -> dict[str, float]:
        self.check_finite()
        fetched = jax.device_get([metrics for _, metrics in self._metrics])
        values = {f"train/{name}": float(np.mean([row[name] for row in fetched])) for name in fetched[0]}
        seconds = (time.perf_counter() - self._started) / len(fetched)
        values["step_time"] = seconds
        values["data_wait"] = self._waited / len(fetched)
        values["examples_per_second"] = self._batch_size / seconds
        self._metrics.clear()
        self._waited = 0.0
        self._started = time.perf_counter()
        return values


class _StopSignal:
    """Turns the first SIGTERM or SIGINT into a request; a second one acts as usual.

    Of several processes JAX has taken SIGTERM over, and makes all of them stop after the same step.
    """

    def __init__(self):
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "_StopSignal":
        if jax.process_count() > 1:
            return self
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._request)
        except ValueError:
            log.info("not in the main thread: signals do not stop this run")
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def requested_at(self, step: int) -> bool:
        """Whether to stop now that `step` steps are done; asked after every step, by all processes."""
        self.requested = self.requested or processes.preempted(step)
        return self.requested

    def _request(self, number, frame) -> None:
        del frame
        self.requested = True
        signal.signal(number, self._previous[number])  # type: ignore[arg-type]
        log.info("stopping after this step; once more to stop at once")
