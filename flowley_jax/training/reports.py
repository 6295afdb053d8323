"""What a run tells people: metrics in files and progress on the screen, from one process of many."""

from collections.abc import Mapping
from pathlib import Path

from flowley_jax.training import processes
from flowley_jax.training.metrics import MetricWriter
from flowley_jax.training.progress import Progress


class Reports:
    """Metrics and progress of the first process; the others are silent.

    Attributes:
      writer: of metrics; None in the other processes.
    """

    def __init__(self, workdir: Path, *, first_step: int, last_step: int):
        self.writer = MetricWriter(workdir, first_step=first_step) if processes.is_first() else None
        self._progress = Progress(first_step, last_step)

    def __enter__(self) -> "Reports":
        return self

    def __exit__(self, *exc_info) -> None:
        if self.writer:
            self.writer.__exit__(*exc_info)

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """Means since the last report."""
        if self.writer:
            self.writer.scalars(step, values)
            self._progress.show(step, values)

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Losses of the valid split."""
        if self.writer:
            self.writer.scalars(step, values)
            self._progress.note(f"step {step}: validation loss {values['valid/loss']:.4f}")
