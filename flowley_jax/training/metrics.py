"""Metrics of a run: collected one step late, and written to `metrics.jsonl`, TensorBoard and the screen."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from flowley_jax.common import distributed
from flowley_jax.common.durations import format_duration
from flowley_jax.common.files import name_errors, write_text
from flowley_jax.common.jsonl import append_json, read_jsonl
from flowley_jax.config import TrainConfig
from flowley_jax.errors import FlowleyError
from flowley_jax.media.level import limit_true_peak
from flowley_jax.training.flops import StepRate
from flowley_jax.training.timing import Timing

log = logging.getLogger(__name__)
HISTORY = "metrics.jsonl"


class NonFiniteLossError(FlowleyError):
    """Several steps in a row had a non-finite loss or gradient; none of them changed the state."""


class StepMetrics:
    """The metrics of the steps since the last log line.

    A step's metrics are fetched while the next step runs, so that the devices never wait for the host. This
    also keeps the host from running more than one step ahead.

    Args:
      config: log interval, and the number of skipped steps in a row that ends the run.
      timing: records the step times.
      batch_size: clips per step, over all devices.
      rate: for MFU; None on devices of unknown peak.
    """

    def __init__(self, config: TrainConfig, timing: Timing, *, batch_size: int, rate: StepRate | None):
        self._config, self._timing = config, timing
        self._batch_size, self._rate = batch_size, rate
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._rows: list[tuple[int, dict[str, float]]] = []
        self._skipped = self._skipped_in_a_row = 0

    @property
    def devices_idle(self) -> bool:
        """Whether the devices have finished all steps that were dispatched."""
        loss: Any = self._pending and self._pending[1]["loss"]
        return loss is None or loss.is_ready()

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Add a dispatched step, and wait for the one before it.

        Raises:
          NonFiniteLossError: `train.max_skipped` steps in a row were skipped.
        """
        self.wait()
        self._pending = (step, metrics)

    def wait(self) -> None:
        """Wait for the step that was dispatched last, and fetch its metrics."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        self._timing.step_finished()
        self._rows.append((step, values))
        self._count_skipped(step, values)

    @contextlib.contextmanager
    def paused(self, kind: str, *, step: int) -> Iterator[None]:
        """Run a block between two steps, with no step in flight, and charge its time to `kind`.

        The block may transfer arrays implicitly, which the steps themselves may not.
        """
        self.wait()
        with self._timing.interval(kind, step=step), jax.transfer_guard("allow"):
            yield

    def close_window(self) -> dict[str, float]:
        """Return the means over the steps since the last call, with step times and speed."""
        self.wait()
        values = _means([row for _, row in self._rows if not row["skipped"]])
        last_step, last = self._rows[-1]
        if last_step % self._config.log_every == 0:
            values |= {name: value for name, value in last.items() if name.startswith("update_")}
        values["skipped_steps"] = float(self._skipped)
        values |= self._timing.step_times()
        values["examples_per_second"] = self._batch_size / values["step_time"]
        if self._rate:
            values["mfu"] = self._rate.mfu(values["step_time"])
        self._rows.clear()
        return values

    def _count_skipped(self, step: int, values: Mapping[str, float]) -> None:
        if not values["skipped"]:
            self._skipped_in_a_row = 0
            return
        self._skipped += 1
        self._skipped_in_a_row += 1
        cause = f"loss {values['loss']}, gradient norm {values['gradient_norm']}"
        log.warning("step %d skipped: %s", step, cause)
        if self._skipped_in_a_row >= self._config.max_skipped:
            last_good = step - self._skipped_in_a_row
            raise NonFiniteLossError(
                f"the last {self._skipped_in_a_row} steps up to {step} were skipped ({cause}). The weights "
                f"are those of step {last_good}, and the newest checkpoint is intact. "
                "Lower optim.learning_rate, or check the records of these steps"
            )


class MetricWriter:
    """Writer of `workdir/metrics.jsonl` and of TensorBoard files in `workdir/tensorboard`.

    Args:
      first_step: the step that the run resumes from; rows of later steps are dropped.
    """

    def __init__(self, workdir: Path, *, first_step: int):
        self._path = workdir / HISTORY
        kept = [row for row in read_history(workdir) if row["step"] <= first_step]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._board = _EventFile(workdir / "tensorboard", first_step=first_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write named numbers of one step."""
        append_json(self._path, {"step": step, **values})
        self._board.write(step, *(summary.scalar(name, value) for name, value in values.items()))

    def sound(self, step: int, name: str, wave: np.ndarray, sample_rate: int) -> None:
        """Write a mono wave (N,), with its true peak limited as in files."""
        limited = limit_true_peak(wave, sample_rate)
        self._board.write(step, summary.audio(name, limited[:, None], sample_rate))

    def picture(self, step: int, name: str, mel: np.ndarray) -> None:
        """Write a log-mel spectrogram (frames, bins) as a grey picture with the low bins at the bottom."""
        low, high = float(mel.min()), float(mel.max())
        grey = (mel.T[::-1] - low) / max(high - low, 1e-6)
        self._board.write(step, summary.image(name, grey.astype(np.float32), dataformats="HW"))

    def close(self) -> None:
        """Close the TensorBoard file."""
        self._board.close()


class Progress:
    """A progress bar on a terminal, and a line per report elsewhere."""

    def __init__(self, first_step: int, last_step: int):
        self._last = last_step
        # disable=None: no bar unless standard error is a terminal.
        self._bar = tqdm(initial=first_step, total=last_step, unit="step", disable=None, dynamic_ncols=True)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Report the losses and the speed after `step`."""
        loss, speed = values.get("train/loss", float("nan")), values["examples_per_second"]
        if self._bar.disable:
            seconds_left = (self._last - step) * values["step_time"]
            log.info(
                "step %d/%d  loss %.4f  %.1f clips/s  %s left",
                step,
                self._last,
                loss,
                speed,
                format_duration(seconds_left),
            )
        else:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {speed:.1f} clips/s", refresh=False)
            self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """End the bar, and leave it on the screen."""
        self._bar.close()


class Reports:
    """Reports of a run, from its first process only: metrics in files and progress on the screen.

    Attributes:
      writer: metric files; None in the other processes.
    """

    def __init__(self, workdir: Path, *, first_step: int, last_step: int):
        self.writer: MetricWriter | None = None
        self._cleanup = contextlib.ExitStack()
        if distributed.is_first():
            self.writer = MetricWriter(workdir, first_step=first_step)
            self._cleanup.callback(self.writer.close)
            self._progress = Progress(first_step, last_step)
            self._cleanup.callback(self._progress.close)

    def __enter__(self) -> "Reports":
        if self.writer:
            self._cleanup.enter_context(logging_redirect_tqdm([logging.getLogger("flowley_jax")]))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._cleanup.close()

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """Report the means since the last report."""
        if self.writer:
            self.writer.scalars(step, values)
            self._progress.show(step, values)

    def validation(self, step: int, losses: Mapping[str, float]) -> None:
        """Report the losses of the valid split."""
        if self.writer:
            self.writer.scalars(step, losses)
            log.info("step %d: validation loss %.4f", step, losses["valid/loss"])

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Report the scores of sampled sounds, named `eval/…`."""
        if self.writer:
            self.writer.scalars(step, {f"eval/{metric}": value for metric, value in scores.items()})
            shown = ", ".join(f"{metric} {value:.4g}" for metric, value in scores.items())
            log.info("step %d: evaluation: %s", step, shown)


class _EventFile:
    """One TensorBoard event file, flushed at every write.

    tensorboardX's own SummaryWriter writes in a thread. If a full disk ends that thread, the run waits for it
    forever.
    """

    def __init__(self, folder: Path, *, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._events = EventsWriter(str(folder / "events"), f".from_{first_step}")
        # Makes TensorBoard drop later steps of the run that this start resumes.
        session = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(step=first_step + 1, wall_time=time.time(), session_log=session))

    def write(self, step: int, *summaries: Any) -> None:
        with name_errors(self._folder):
            for entry in summaries:
                self._events.write_event(Event(step=step, wall_time=time.time(), summary=entry))
            self._events.flush()

    def close(self) -> None:
        with name_errors(self._folder):
            self._events.close()


def read_history(workdir: Path) -> list[dict[str, float]]:
    """Return the rows of `metrics.jsonl`, without a last line that a crash cut short."""
    return read_jsonl(workdir / HISTORY)


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    names = [
        name for name in (rows[0] if rows else {}) if name != "skipped" and not name.startswith("update_")
    ]
    return {f"train/{name}": float(np.mean([row[name] for row in rows])) for name in names}
