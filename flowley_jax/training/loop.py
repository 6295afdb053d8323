"""The training loop: reads batches, runs steps, and logs, stores, validates and stops when that is due."""

import contextlib
import dataclasses
import functools
import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import grain
import jax

from flowley_jax.common import distributed
from flowley_jax.common.stop_signal import StopSignal
from flowley_jax.common.trees import named_leaves
from flowley_jax.common.worker_processes import signals_kept_from_children
from flowley_jax.config import ExperimentConfig
from flowley_jax.data.components import Components
from flowley_jax.data.pipeline import train_batches
from flowley_jax.data.record import has_split, open_records
from flowley_jax.errors import FlowleyError
from flowley_jax.flow.guidance import Guidance
from flowley_jax.model import ModelConfig
from flowley_jax.runs import weights
from flowley_jax.runs.snapshots import EmaSnapshots
from flowley_jax.runs.workdir import BASE, check_base, has_steps, open_workdir
from flowley_jax.runs.workdir_lock import locked_workdir
from flowley_jax.training.checkpoint import RunCheckpoints
from flowley_jax.training.evaluation import Evaluation, PrepareEvaluation, report_scores
from flowley_jax.training.flops import step_rate
from flowley_jax.training.metrics import Reports, StepMetrics
from flowley_jax.training.sharding import Layout, make_layout
from flowley_jax.training.state import (
    StepConfig,
    TrainState,
    abstract_state,
    create_state,
    state_from_weights,
    weights_in_loss,
)
from flowley_jax.training.step import train_step
from flowley_jax.training.timing import ProfileWindow, Timing
from flowley_jax.training.validation import ValidationStopped, validation_losses, write_previews

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of `train`.

    Attributes:
      step: the last finished step.
      interrupted: whether a signal stopped the run before its last step.
    """

    step: int
    interrupted: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """The parts of a run that do not change: its configuration, folder, components, layout and evaluation."""

    config: ExperimentConfig
    workdir: Path
    components: Components
    layout: Layout
    prepare_evaluation: PrepareEvaluation | None

    @property
    def records(self) -> Path:
        return Path(self.config.data.records)

    @property
    def step_config(self) -> StepConfig:
        return StepConfig.from_experiment(self.config)


def train(
    config: ExperimentConfig, workdir: Path, *, prepare_evaluation: PrepareEvaluation | None = None
) -> Outcome:
    """Train until `config.train.steps`, resuming from the newest checkpoint in `workdir`.

    On SIGTERM or Ctrl-C, finish the current step, store the state and return. While the folder is in use by
    another training, wait for that one to end.

    Args:
      config: configuration of the run.
      workdir: folder of the run.
      prepare_evaluation: prepares the evaluations that `train.evaluate_every` asks for.

    Raises:
      FlowleyError: the records do not fit the model, or the folder belongs to another run or is in use; the
        run cannot be evaluated as it is configured; or another process of the run has ended.
      NonFiniteLossError: `train.max_skipped` steps in a row had a non-finite loss or gradient.
    """
    with distributed.processes_of_run():
        run = _checked_run(config, workdir, prepare_evaluation)
        with locked_workdir(workdir):
            # Not in a variable of this frame, which would hold the weights to the end.
            return _train(run, _claim_workdir(run))


def _train(run: _Run, start: weights.Weights | None) -> Outcome:
    config, workdir = run.config, run.workdir
    timing = Timing(workdir, checkpoint_minutes=config.train.checkpoint_minutes)
    every, layout, step_config = config.train, run.layout, run.step_config
    log.info("%s; %d clips per step", layout, config.data.batch_size)
    _log_splits(run.records, config.data.batch_size)
    batches = _local_batches(run)
    evaluation = _start_evaluation(run, timing)
    validates = has_split(run.records, "valid")

    with (
        # Outermost, because the end of `RunCheckpoints` waits for the last one to be written.
        StopSignal() as stop,
        RunCheckpoints(workdir, keep=every.keep_checkpoints) as checkpoints,
        EmaSnapshots(workdir) as snapshots,
        _released(batches),
    ):
        resuming = bool(distributed.broadcast_from_first(checkpoints.latest_step is not None))
        state = _first_state(run, start, resuming=resuming)
        del start
        if resuming:
            state, data_state = checkpoints.restore(state)
            batches.set_state(data_state)
        _log_start(run, state)
        first = step = int(state.step)
        rate = step_rate(config, run.components.lengths)
        metrics = StepMetrics(every, timing, batch_size=config.data.batch_size, rate=rate)
        with (
            ProfileWindow(workdir, first=every.profile_from, count=every.profile_steps) as profile,
            Reports(workdir, first_step=first, last_step=every.steps) as reports,
            jax.transfer_guard("disallow"),
        ):
            timing.charge("start")
            rows = batch = None
            while step < every.steps and not stop.check():
                # The first batch starts the workers that read ahead.
                with signals_kept_from_children() if step == first else contextlib.nullcontext():
                    rows = next(batches)
                batch = layout.shard_local_rows(rows)
                if step == first:
                    log.info("compiling the training step, which can take minutes")
                step += 1
                timing.batch_ready(step, devices_idle=metrics.devices_idle)
                with profile.step(step):
                    state, step_metrics = train_step(state, batch, config=step_config, layout=layout)
                if step == first + 1:
                    log.info("compiled in %.0f s", timing.compiled())
                metrics.add(step, step_metrics)
                profile.after(step, step_metrics)
                timing.charge_step(step)

                log_is_due = _is_due(step, every.log_every, last=every.steps)
                if log_is_due:
                    with metrics.paused("reports", step=step):
                        reports.training(step, {**metrics.close_window(), **timing.goodput})
                        timing.write(step)
                if _is_due(step, config.ema.snapshot_every, last=every.steps):
                    with metrics.paused("checkpoint", step=step):
                        snapshots.save(step, state.averages, state.constants)
                if step < every.steps and stop.check():
                    # The state comes first: a machine that is being preempted has no time for validation.
                    break
                # Before the next batch is drawn, so that the stored data position belongs to the state.
                checkpoint_is_due = _is_due(step, every.checkpoint_every, last=every.steps)
                if checkpoint_is_due or (log_is_due and timing.checkpoint_is_old()):
                    with metrics.paused("checkpoint", step=step):
                        checkpoints.save(step, state, batches.get_state())
                        timing.checkpoint_stored()
                if validates:
                    paused = functools.partial(metrics.paused, "reports", step=step)
                    _report_valid_clips(run, evaluation, reports, step, state, paused, stop=stop.check)
            # Their memory is shared with the readers, which end below.
            del rows, batch
            if stop.requested and step > first:
                with metrics.paused("checkpoint", step=step):
                    checkpoints.save(step, state, batches.get_state())
            metrics.wait()
    if step > first:
        # Leaving the block above waited for the last checkpoint.
        timing.charge("checkpoint")
        timing.write(step)
    return _outcome(run, step)


def _is_due(step: int, interval: int, *, last: int) -> bool:
    return step % interval == 0 or step == last


def _checked_run(
    config: ExperimentConfig, workdir: Path, prepare_evaluation: PrepareEvaluation | None
) -> _Run:
    """Check everything that could prevent the run, before anything is written."""
    records = Path(config.data.records)
    if config.train.evaluate_every and prepare_evaluation is None:
        raise FlowleyError(
            f"train.evaluate_every={config.train.evaluate_every} needs metrics, which this program does not "
            "have: train with flowley_jax.train, or set it to 0"
        )

    def check() -> tuple[Components, Layout]:
        components = Components.load(records)
        _check_records(config.model, components, records)
        return components, make_layout(config.mesh, config.model, batch_size=config.data.batch_size)

    components, layout = distributed.all_do(check, failure=f"{records}: refused")
    return _Run(
        config=config,
        workdir=workdir,
        components=components,
        layout=layout,
        prepare_evaluation=prepare_evaluation,
    )


def _start_evaluation(run: _Run, timing: Timing) -> Evaluation | None:
    """Prepare the evaluations, while a signal still ends the program at once: this can take minutes."""
    if not run.config.train.evaluate_every or run.prepare_evaluation is None:
        return None
    timing.charge("start")
    evaluation = run.prepare_evaluation(run.config, run.workdir, run.components)
    timing.charge("reports")
    return evaluation


@contextlib.contextmanager
def _released(batches: grain.DatasetIterator) -> Iterator[None]:
    """After the block, end the processes that read ahead, and free the memory of what they have read."""
    try:
        yield
    finally:
        # Grain then drops its readers; `close` alone would keep what they hold.
        batches.set_state(batches.get_state())
        gc.collect()


def _check_records(model: ModelConfig, components: Components, records: Path) -> None:
    expected = {
        "audio_dim": (model.audio_dim, components.dims.audio_dim),
        "video_dim": (model.video_dim, components.dims.video_dim),
        "text_dim": (model.text_dim, components.dims.text_dim),
        "video_fps": (model.video_fps, components.video_fps),
    }
    wrong = [
        f"model.{name}={ours}, records have {theirs}"
        for name, (ours, theirs) in expected.items()
        if ours != theirs
    ]
    if wrong:
        raise FlowleyError(
            f"{records}: the records do not fit the model: {'; '.join(wrong)}. Set these values, or take the "
            "configuration that the records were made for"
        )


def _local_batches(run: _Run) -> grain.DatasetIterator:
    """Return an iterator over the rows of every batch that this process reads."""
    data = run.config.data
    rows, group = run.layout.batch_rows(data.batch_size)
    return train_batches(
        run.records,
        batch_size=data.batch_size,
        seed=run.config.seed,
        rows=rows,
        group=group,
        num_workers=data.num_workers,
        feature_dtype=run.config.model.dtype,
        captions=dict(zip(data.captions, data.caption_weights, strict=True)),
    )


def _claim_workdir(run: _Run) -> weights.Weights | None:
    """Claim the folder, and return the weights of `start.weights`; None if it is empty or the run has begun.

    The weights are read first: if they are refused, the folder is left as it is.
    """
    config, workdir = run.config, run.workdir
    is_new = not distributed.broadcast_from_first(has_steps(workdir))
    start, base_sha256 = None, ""
    if is_new and config.start.weights:
        start = _read_in_all(lambda: _named_weights(run), config.start.weights)
        base_sha256 = start.sha256 if run.step_config.keeps_start else ""
    open_workdir(workdir, config, run.components, run.records, base_sha256=base_sha256)
    return start


def _named_weights(run: _Run) -> weights.Weights:
    start = run.config.start
    log.info("starting from %s", start.weights)
    return weights.starting_weights(start, run.config.model, run.components)


def _read_in_all(read: Callable[[], weights.Weights], source: object) -> weights.Weights:
    return distributed.all_do(read, failure=f"{source}: refused")


def _first_state(run: _Run, start: weights.Weights | None, *, resuming: bool) -> TrainState:
    """Return the state to start from: random, from the weights that `start.weights` names, or only shapes.

    A run that resumes needs shapes only, since the checkpoint replaces them. The exception is the frozen
    weights of LoRA and of flow maps: checkpoints leave them out, and the run's folder keeps a copy.

    Args:
      start: the weights that `start.weights` names, if the run is new.
    """
    config, layout, step_config = run.config, run.layout, run.step_config
    if resuming and not step_config.keeps_start:
        return abstract_state(step_config, layout)
    if not config.start.weights:
        components = run.components
        return create_state(
            step_config, layout, latent_mean=components.latent_mean, latent_std=components.latent_std
        )
    base = run.workdir / BASE
    is_stored = bool(distributed.broadcast_from_first(base.exists()))
    source = base if is_stored else config.start.weights

    def read() -> weights.Weights:
        found = weights.read_weights(base, config.model) if is_stored else _named_weights(run)
        if step_config.keeps_start:
            check_base(run.workdir, found.sha256, source)
        return found

    initial = start or _read_in_all(read, source)
    if step_config.keeps_start and not is_stored:
        distributed.first_does(
            lambda: weights.write_weights(base, initial, {"source": config.start.weights}),
            failure=f"{base}: not written by the first process",
        )
    return state_from_weights(step_config, layout, initial.parameters, initial.constants)


def _report_valid_clips(
    run: _Run,
    evaluation: Evaluation | None,
    reports: Reports,
    step: int,
    state: TrainState,
    paused: Callable[[], contextlib.AbstractContextManager],
    *,
    stop: Callable[[], bool],
) -> None:
    """Report what is due at this step about the clips of the valid split, until `stop` says to end."""
    every, config, layout = run.config.train, run.step_config, run.layout
    if _is_due(step, every.valid_every, last=every.steps):
        with paused(), contextlib.suppress(ValidationStopped):
            losses = validation_losses(
                weights_in_loss(state, config),
                state.constants,
                run.records,
                config=config,
                layout=layout,
                batch_size=run.config.data.batch_size,
                stop=stop,
            )
            reports.validation(step, losses)
    if step % every.preview_every == 0 and not stop():
        with paused():
            write_previews(
                reports.writer,
                step,
                state,
                run.records,
                run.components,
                config=config,
                layout=layout,
                sample=run.config.sample,
            )
    if evaluation and _is_due(step, every.evaluate_every, last=every.steps) and not stop():
        with paused():
            report_scores(evaluation, reports, step, state, config=config, layout=layout, stop=stop)


def _outcome(run: _Run, step: int) -> Outcome:
    steps = run.config.train.steps
    if step < steps:
        log.info("stopped at step %d of %d; run the same command to resume", step, steps)
    else:
        log.info("finished step %d of %d", step, steps)
    log.info("checkpoints are in %s", run.workdir / "checkpoints")
    return Outcome(step=step, interrupted=step < steps)


def _log_splits(records: Path, batch_size: int) -> None:
    clips = len(open_records(records, "train"))
    if clips < batch_size:
        log.warning(
            "%s has only %d training clips: every batch of %d repeats some of them",
            records,
            clips,
            batch_size,
        )
    if not has_split(records, "valid"):
        log.info("%s has no valid split: no validation and no previews", records)


def _log_start(run: _Run, state: TrainState) -> None:
    flow_map = run.config.flow.map
    if flow_map.enabled:
        video, text = Guidance(scale=flow_map.guidance, text_scale=flow_map.guidance_text).scales
        guidance = f"guidance {video:g}" if video == text else f"guidance {video:g} (text {text:g})"
        guidance = guidance if max(video, text) > 1.0 else "no guidance"
        log.info("trains a flow map from %s, %s folded in", run.config.start.weights, guidance)
    undivided = run.layout.undivided_weights(state.parameters)
    if undivided:
        log.warning(
            "%d weights are replicated because the mesh does not divide them, e.g. %s",
            len(undivided),
            undivided[0],
        )
    trained, frozen = (
        sum(leaf.size for leaf in named_leaves(tree).values()) for tree in (state.parameters, state.frozen)
    )
    log.info(
        "%s at step %d of %d in %s; %s parameters%s",
        "resuming" if state.step else "starting",
        state.step,
        run.config.train.steps,
        run.workdir,
        f"{trained:,}",
        f" (plus {frozen:,} frozen)" if frozen else "",
    )
