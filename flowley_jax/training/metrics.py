"""What a run writes down: one line of JSON per log interval, and TensorBoard beside it."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

from flowley_jax.whole_files import append_line, naming, write_text

HISTORY = "metrics.jsonl"


class MetricWriter:
    """Appends to `workdir/metrics.jsonl` and to TensorBoard files in `workdir/tensorboard`.

    Args:
      first_step: a resumed run starts after this step; later lines of the history are dropped.
    """

    def __init__(self, workdir: Path, *, first_step: int):
        self._path = workdir / HISTORY
        kept = [row for row in read_history(workdir) if row["step"] <= first_step]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._board = _Board(workdir / "tensorboard", first_step=first_step)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exc_info) -> None:
        self._board.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes named numbers of one step."""
        append_line(self._path, json.dumps({"step": step, **values}))
        self._board.write(step, *(summary.scalar(name, value) for name, value in values.items()))

    def sound(self, step: int, name: str, wave: np.ndarray, sample_rate: int) -> None:
        """Writes a mono wave (N,) in [-1, 1]."""
        self._board.write(step, summary.audio(name, np.clip(wave, -1.0, 1.0)[:, None], sample_rate))

    def picture(self, step: int, name: str, mel: np.ndarray) -> None:
        """Writes a log-mel spectrogram (frames, bins) as a grey picture, low bins at the bottom."""
        low, high = float(mel.min()), float(mel.max())
        grey = (mel.T[::-1] - low) / max(high - low, 1e-6)
        self._board.write(step, summary.image(name, grey.astype(np.float32), dataformats="HW"))


class _Board:
    """One TensorBoard event file, written at once.

    tensorboardX's own SummaryWriter writes in a thread; when that dies of a full disk, the run would wait
    for it for ever.
    """

    def __init__(self, folder: Path, *, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._events = EventsWriter(str(folder / "events"), f".from_{first_step}")
        # Tells TensorBoard to forget later steps of the run that this one goes on from.
        session = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(step=first_step + 1, wall_time=time.time(), session_log=session))

    def write(self, step: int, *summaries: Any) -> None:
        with naming(self._folder):
            for entry in summaries:
                self._events.write_event(Event(step=step, wall_time=time.time(), summary=entry))
            self._events.flush()

    def close(self) -> None:
        with naming(self._folder):
            self._events.close()


def read_history(workdir: Path) -> list[dict[str, float]]:
    """Rows of `metrics.jsonl`; a last line cut by a crash is left out."""
    path = workdir / HISTORY
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
