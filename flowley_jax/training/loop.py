"""The loop around the training step: data, logs, validation, checkpoints, interruption."""

import dataclasses
import logging
from pathlib import Path

import grain
import jax

from flowley_jax.config import ExperimentConfig
from flowley_jax.data.parts import Parts
from flowley_jax.data.pipeline import train_batches
from flowley_jax.data.record import has_split, open_records
from flowley_jax.errors import FlowleyError
from flowley_jax.training import processes, weights
from flowley_jax.training import workdir as workdirs
from flowley_jax.training.asides import Asides
from flowley_jax.training.checkpoint import EmaSnapshots, RunCheckpoints
from flowley_jax.training.clock import Clock
from flowley_jax.training.goodput import Goodput
from flowley_jax.training.optimizer import make_optimizer
from flowley_jax.training.profiling import ProfileWindow
from flowley_jax.training.reports import Reports
from flowley_jax.training.sharding import Layout, make_layout
from flowley_jax.training.signals import StopSignal
from flowley_jax.training.speed import speed_of
from flowley_jax.training.state import TrainState, abstract_state, create_state, state_from
from flowley_jax.training.step import make_train_step, make_valid_step
from flowley_jax.training.window import Window

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `train` ended: the last finished step, and whether a signal stopped it early."""

    step: int
    interrupted: bool


def train(config: ExperimentConfig, workdir: Path) -> Outcome:
    """Trains until `config.train.steps`, going on from the newest checkpoint in `workdir`.

    SIGTERM and Ctrl-C finish the current step, store it and return.

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
    _tell_of_splits(config, records)
    optimizer = make_optimizer(config.optim, config.train.steps)
    batches = _batches(config, layout, records)
    with (
        RunCheckpoints(workdir, keep=config.train.keep_checkpoints) as checkpoints,
        EmaSnapshots(workdir) as snapshots,
        StopSignal() as stop,
    ):
        resumes = checkpoints.latest_step is not None
        graphdef, state = _begin(config, optimizer, layout, parts, workdir, resumes=resumes)
        _tell_of_whole_weights(layout.left_whole(state.parameters))
        train_step = make_train_step(config, graphdef, optimizer, layout)
        if resumes:
            state, data_state = checkpoints.restore(state)
            batches.set_state(data_state)
        first = step = int(state.step)
        _tell_of_start(config, state, workdir)
        window = Window(config, speed_of(config, parts.lengths))
        clock = Clock(goodput, window, minutes=config.train.checkpoint_minutes)
        profile = ProfileWindow(workdir, first=config.train.profile_from, count=config.train.profile_steps)
        with profile, Reports(workdir, first_step=first, last_step=config.train.steps) as reports:
            asides = Asides(
                config=config,
                records=records,
                parts=parts,
                layout=layout,
                graphdef=graphdef,
                valid_step=make_valid_step(config, graphdef, layout) if has_split(records, "valid") else None,
                batches=batches,
                window=window,
                clock=clock,
                goodput=goodput,
                reports=reports,
                snapshots=snapshots,
                checkpoints=checkpoints,
            )
            goodput.spent("start")
            while step < config.train.steps and not stop.requested_at(step):
                batch = layout.place_rows(next(batches))
                if step == first:
                    log.info("compiling the step, which may take minutes")
                step += 1
                waited = clock.batch_is_there(step)
                profile.before(step)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, metrics = train_step(state, batch)
                if step == first + 1:
                    log.info("compiled in %.0f s", clock.compiled())
                    waited = 0.0
                window.add(step, metrics, waited)
                profile.after(step, metrics)
                clock.step_is_done(step)
                asides.after(step, state)
            window.finish_step()
            if stop.requested and step > first:
                asides.store(step, state)
    if step > first:
        goodput.spent("checkpoint")
        goodput.write(step)
    return _ended(step, config.train.steps, workdir)


def _ended(step: int, steps: int, workdir: Path) -> Outcome:
    interrupted = step < steps
    how = "stopped at step %d of %d; the same command goes on" if interrupted else "finished at step %d of %d"
    log.info(f"{how}; checkpoints in %s", step, steps, workdir)
    return Outcome(step=step, interrupted=interrupted)


def _batches(config: ExperimentConfig, layout: Layout, records: Path) -> grain.DatasetIterator:
    """Those rows of every batch that this process feeds."""
    rows, group = layout.rows(config.data.batch_size)
    return train_batches(
        records,
        batch_size=config.data.batch_size,
        seed=config.seed,
        rows=rows,
        group=group,
        num_workers=config.data.num_workers,
        feature_dtype=config.model.dtype,
        captions=dict(zip(config.data.captions, config.data.caption_weights, strict=True)),
    )


def _begin(
    config: ExperimentConfig, optimizer, layout: Layout, parts: Parts, workdir: Path, *, resumes: bool
):
    """Structure and first state: random, or what `config.start` names.

    A checkpoint replaces all but the weights that LoRA adapts, which are kept in the run's folder: a run that
    goes on without LoRA needs shapes alone.
    """
    if resumes and not config.lora.rank:
        return abstract_state(config, optimizer, layout)
    kept = workdir / workdirs.BASE
    if not config.start.weights:
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


def _tell_of_splits(config: ExperimentConfig, records: Path) -> None:
    clips = len(open_records(records, "train"))
    if clips < config.data.batch_size:
        log.warning(
            "%s has %d clips to train on: every batch of %d has some of them again",
            records,
            clips,
            config.data.batch_size,
        )
    if not has_split(records, "valid"):
        log.info("%s has no valid split: no validation and no previews", records)


def _tell_of_start(config: ExperimentConfig, state: TrainState, workdir: Path) -> None:
    trained, frozen = (
        sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state.parameters, state.frozen)
    )
    log.info(
        "%s at step %d of %d in %s; %s parameters%s",
        "resuming" if state.step else "starting",
        state.step,
        config.train.steps,
        workdir,
        f"{trained:,}",
        f" beside {frozen:,} that stay as they are" if frozen else "",
    )


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
