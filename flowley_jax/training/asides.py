"""What is done between two steps when it is due: logs, validation, previews, EMA snapshots, checkpoints."""

import dataclasses
from pathlib import Path
from typing import Any

import grain

from flowley_jax.config import ExperimentConfig
from flowley_jax.data.parts import Parts
from flowley_jax.training import preview
from flowley_jax.training.checkpoint import EmaSnapshots, RunCheckpoints
from flowley_jax.training.clock import Clock
from flowley_jax.training.goodput import Goodput
from flowley_jax.training.reports import Reports
from flowley_jax.training.sharding import Layout
from flowley_jax.training.state import TrainState
from flowley_jax.training.validation import validation_losses
from flowley_jax.training.window import Window


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asides:
    """All that a run does besides its steps.

    Attributes:
      valid_step: gives the losses of a batch; None without a valid split.
    """

    config: ExperimentConfig
    records: Path
    parts: Parts
    layout: Layout
    graphdef: Any
    valid_step: Any
    batches: grain.DatasetIterator
    window: Window
    clock: Clock
    goodput: Goodput
    reports: Reports
    snapshots: EmaSnapshots
    checkpoints: RunCheckpoints

    def after(self, step: int, state: TrainState) -> None:
        """Does what is due after a step."""
        times = self.config.train
        logs = self._due(step, times.log_every)
        if logs:
            self._log(step)
        if self.valid_step and self._due(step, times.valid_every):
            self._validate(step, state)
        if self.valid_step and step % times.preview_every == 0:
            self._preview(step, state)
        if self._due(step, self.config.ema.snapshot_every):
            with self.clock.aside(step, "checkpoint"):
                self.snapshots.save(state, step)
        if self._due(step, times.checkpoint_every) or (logs and self.clock.checkpoint_is_old()):
            self.store(step, state)

    def store(self, step: int, state: TrainState) -> None:
        """Saves a checkpoint: before the next batch is drawn, so that its data position is the state's."""
        with self.clock.aside(step, "checkpoint"):
            self.checkpoints.save(step, state, self.batches.get_state())
        self.clock.stored()

    def _log(self, step: int) -> None:
        with self.clock.aside(step, "reports"):
            self.reports.training(step, {**self.window.close(), **self.goodput.figures})
            self.goodput.write(step)

    def _validate(self, step: int, state: TrainState) -> None:
        with self.clock.aside(step, "reports"):
            losses = validation_losses(self.valid_step, state, self.records, self.config, self.layout)
            self.reports.validation(step, losses)

    def _preview(self, step: int, state: TrainState) -> None:
        with self.clock.aside(step, "reports"):
            preview.write(
                self.reports.writer,
                step,
                self.graphdef,
                state,
                self.layout,
                self.records,
                self.parts,
                self.config,
            )

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.config.train.steps
