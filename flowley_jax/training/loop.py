"""The loop around the training step: data, logs, validation, checkpoints, interruption."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from flowley_jax.config import ExperimentConfig
from flowley_jax.data.parts import Parts
from flowley_jax.data.pipeline import train_batches
from flowley_jax.data.record import has_split
from flowley_jax.errors import FlowleyError
from flowley_jax.training import preview, processes, weights
from flowley_jax.training import workdir as workdirs
from flowley_jax.training.checkpoint import EmaSnapshots, RunCheckpoints
from flowley_jax.training.goodput import Goodput
from flowley_jax.training.optimizer import make_optimizer
from flowley_jax.training.profiling import ProfileWindow
from flowley_jax.training.reports import Reports
from flowley_jax.training.sharding import Layout, make_layout
from flowley_jax.training.signals import StopSignal
from flowley_jax.training.speed import speed_of
from flowley_jax.training.state import create_state, state_from
from flowley_jax.training.step import make_train_step, make_valid_step
from flowley_jax.training.validation import validation_losses
from flowley_jax.training.window import Window

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `train` ended: the last finished step, and whether a signal stopped it early."""

    step: int
    interrupted: bool


def train(config: ExperimentConfig, workdir: Path) -> Outcome:
    """Trains until `config.train.steps`, going on from the newest checkpoint in `workdir`.

    SIGTERM and Ctrl-C finish the current step, store it and return. The order inside the loop matters:
    a checkpoint is saved before the next batch is drawn, so that its data position is the one of the
    state.

    Raises:
      FlowleyError: records and model disagree about sizes, or the folder belongs to another run.
      NonFiniteLossError: `train.max_skipped` steps in a row had no finite loss or gradient.
    """
    goodput = Goodput(workdir)
    records = Path(config.data.records)
    parts = Parts.load(records)
    _check_sizes(config, parts, records)
    # Whatever refuses this run does so before the folder is its own.
    layout = make_layout(config)
    workdirs.open_workdir(workdir, config, parts, records)
    log.info("%s; batches of %d", layout.described(), config.data.batch_size)
    validates = has_split(records, "valid")
    if not validates:
        log.info("%s has no valid split: no validation and no previews", records)

    optimizer = make_optimizer(config.optim, config.train.steps)
    rows, group = layout.rows(config.data.batch_size)
    batches = train_batches(
        records,
        batch_size=config.data.batch_size,
        seed=config.seed,
        rows=rows,
        group=group,
        num_workers=config.data.num_workers,
        feature_dtype=config.model.dtype,
    )
    with (
        RunCheckpoints(workdir, keep=config.train.keep_checkpoints) as checkpoints,
        EmaSnapshots(workdir) as snapshots,
        StopSignal() as stop,
    ):
        resumes = checkpoints.latest_step is not None
        graphdef, state = _begin(config, optimizer, layout, parts, workdir, resumes=resumes)
        _tell_of_whole_weights(layout.left_whole(state.parameters))
        step_fn = make_train_step(config, graphdef, optimizer, layout)
        valid_fn = make_valid_step(config, graphdef, layout)
        if resumes:
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
        window = Window(config, speed_of(config, parts.lengths))
        clock = _Clock(goodput, window, minutes=config.train.checkpoint_minutes)
        profile = ProfileWindow(workdir, first=config.train.profile_from, count=config.train.profile_steps)
        with profile, Reports(workdir, first_step=first, last_step=config.train.steps) as reports:
            goodput.spent("start")
            while step < config.train.steps and not stop.requested_at(step):
                batch = layout.place_rows(next(batches))
                step += 1
                waited = clock.batch_is_there(step)
                profile.before(step)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, metrics = step_fn(state, batch)
                if step == first + 1:
                    clock.compiled()
                    waited = 0.0
                window.add(step, metrics, waited)
                profile.after(step, metrics)
                clock.step_is_done(step)
                logs = _due(step, config.train.log_every, config)
                if logs:
                    with clock.aside(step, "reports"):
                        reports.training(step, {**window.close(), **goodput.figures})
                        goodput.write(step)
                if validates and _due(step, config.train.valid_every, config):
                    with clock.aside(step, "reports"):
                        reports.validation(step, validation_losses(valid_fn, state, records, config, layout))
                if validates and step % config.train.preview_every == 0:
                    with clock.aside(step, "reports"):
                        preview.write(reports.writer, step, graphdef, state, layout, records, parts, config)
                if _due(step, config.ema.snapshot_every, config):
                    with clock.aside(step, "checkpoint"):
                        snapshots.save(state, step)
                if _due(step, config.train.checkpoint_every, config) or (logs and clock.checkpoint_is_old()):
                    with clock.aside(step, "checkpoint"):
                        checkpoints.save(step, state, batches.get_state())
                    clock.stored()
            window.finish_step()
            if stop.requested and step > first:
                with clock.aside(step, "checkpoint"):
                    checkpoints.save(step, state, batches.get_state())
    if step > first:
        goodput.spent("checkpoint")
        goodput.write(step)
    interrupted = step < config.train.steps
    log.info("%s at step %d; checkpoints in %s", "stopped" if interrupted else "finished", step, workdir)
    return Outcome(step=step, interrupted=interrupted)


def _begin(
    config: ExperimentConfig, optimizer, layout: Layout, parts: Parts, workdir: Path, *, resumes: bool
):
    """Structure and first state: random, or what `config.start` names.

    A run that goes on does not need the latter any more: a checkpoint replaces all but the weights that LoRA
    adapts, and those are kept in the run's folder.
    """
    kept = workdir / weights.BASE
    if not config.start.weights or (resumes and not config.lora.rank):
        return create_state(
            config, optimizer, layout, latent_mean=parts.latent_mean, latent_std=parts.latent_std
        )
    if kept.exists():
        found = weights.read_weights(kept, config.model)
    else:
        log.info("starting from %s", config.start.weights)
        found = weights.starting_weights(config)
    processes.wait_for_all("starting weights read")
    if config.lora.rank and not kept.exists() and processes.is_first():
        weights.write_weights(kept, found, {"source": config.start.weights})
    return state_from(found.parameters, found.constants, config, optimizer, layout)


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


class _Clock:
    """Tells what the time of the loop is spent on, and when a checkpoint is due by it."""

    def __init__(self, goodput: Goodput, window: Window, *, minutes: float):
        self._goodput, self._window = goodput, window
        self._most = 60.0 * minutes
        self._stored = time.monotonic()

    def batch_is_there(self, step: int) -> float:
        """Seconds in which the devices had nothing to do for want of the batch of this step."""
        if self._window.devices_idle:
            return self._goodput.spent("data")
        self.step_is_done(step)
        return 0.0

    def step_is_done(self, step: int) -> None:
        self._goodput.spent(self._goodput.kind_of_step(step))

    def compiled(self) -> None:
        self._goodput.spent("compile")
        self._window.restart_clock()

    @contextlib.contextmanager
    def aside(self, step: int, kind: str) -> Iterator[None]:
        """Around what is no training."""
        self._window.finish_step()
        self.step_is_done(step)
        yield
        self._goodput.spent(kind)
        self._window.restart_clock()

    def checkpoint_is_old(self) -> bool:
        """Whether the last one was stored too long ago; all processes have to ask."""
        return processes.first_says(time.monotonic() - self._stored >= self._most)

    def stored(self) -> None:
        self._stored = time.monotonic()
