"""What a run writes down: one line of JSON per log interval, and TensorBoard beside it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

HISTORY = "metrics.jsonl"


class MetricWriter:
    """Appends to `workdir/metrics.jsonl` and to TensorBoard files in `workdir/tensorboard`.

    Args:
      first_step: a resumed run starts after this step; later lines of the history are dropped.
    """

    def __init__(self, workdir: Path, *, first_step: int):
        self._path = workdir / HISTORY
        kept = [row for row in read_history(workdir) if row["step"] <= first_step]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(partial, self._path)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes named numbers of one step."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def sound(self, step: int, name: str, wave: np.ndarray, sample_rate: int) -> None:
        """Writes a mono wave (N,) in [-1, 1]."""
        self._board.add_audio(name, np.clip(wave, -1.0, 1.0)[:, None], step, sample_rate=sample_rate)

    def picture(self, step: int, name: str, mel: np.ndarray) -> None:
        """Writes a log-mel spectrogram (frames, bins) as a grey picture, low bins at the bottom."""
        low, high = float(mel.min()), float(mel.max())
        grey = (mel.T[::-1] - low) / max(high - low, 1e-6)
        self._board.add_image(name, grey.astype(np.float32), step, dataformats="HW")

    def close(self) -> None:
        """Flushes and closes the files."""
        self._board.close()


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
