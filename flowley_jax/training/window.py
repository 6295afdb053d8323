"""Metrics of the steps since the last log line, fetched one step late."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flowley_jax.config import ExperimentConfig
from flowley_jax.errors import FlowleyError
from flowley_jax.training.speed import Speed

log = logging.getLogger(__name__)
_Metrics = Mapping[str, jax.Array]


class NonFiniteLossError(FlowleyError):
    """Several steps in a row had a loss or a gradient that is not finite; none of them changed the state."""


class Window:
    """Collects metrics without making the devices wait: a step's are fetched while the next one runs, which
    also keeps the host from running more than one step ahead.
    """

    def __init__(self, config: ExperimentConfig, speed: Speed | None):
        self._config, self._speed = config, speed
        self._pending: tuple[int, _Metrics] | None = None
        self._rows: list[tuple[int, dict[str, float]]] = []
        self._durations: list[float] = []
        self._waited = 0.0
        self._skipped = self._in_a_row = 0
        self._since = time.perf_counter()

    @property
    def devices_idle(self) -> bool:
        """Whether the devices have finished all that they were given."""
        loss: Any = self._pending and self._pending[1]["loss"]
        return loss is None or loss.is_ready()

    def add(self, step: int, metrics: _Metrics, waited: float) -> None:
        """Takes a step that was begun, and waits for the one before.

        Args:
          waited: seconds in which the devices had nothing to do for want of data.

        Raises:
          NonFiniteLossError: too many steps in a row were skipped.
        """
        self.finish_step()
        self._pending = (step, metrics)
        self._waited += waited

    def finish_step(self) -> None:
        """Waits for the step that was begun last."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        now = time.perf_counter()
        self._durations.append(now - self._since)
        self._since = now
        self._rows.append((step, values))
        self._count_skipped(step, values)

    def restart_clock(self) -> None:
        """Leaves what was done since the last step out of the step time."""
        self._since = time.perf_counter()

    def close(self) -> dict[str, float]:
        """Means, step times in seconds and speed since the last call."""
        self.finish_step()
        values = _means([row for _, row in self._rows if not row["skipped"]])
        last_step, last = self._rows[-1]
        if last_step % self._config.train.log_every == 0:
            values |= {name: value for name, value in last.items() if name.startswith("update_")}
        values["skipped_steps"] = float(self._skipped)
        seconds = float(np.mean(self._durations))
        values["step_time"] = seconds
        for percentile in (50, 90, 99):
            values[f"step_time_p{percentile}"] = float(np.percentile(self._durations, percentile))
        values["data_wait"] = self._waited / len(self._rows)
        values["examples_per_second"] = self._config.data.batch_size / seconds
        if self._speed:
            values["mfu"] = self._speed.flops / seconds / self._speed.peak
        self._rows.clear()
        self._durations.clear()
        self._waited = 0.0
        return values

    def _count_skipped(self, step: int, values: Mapping[str, float]) -> None:
        if not values["skipped"]:
            self._in_a_row = 0
            return
        self._skipped += 1
        self._in_a_row += 1
        what = f"loss {values['loss']}, gradient norm {values['gradient_norm']}"
        log.warning("step %d skipped: %s", step, what)
        if self._in_a_row >= self._config.train.max_skipped:
            raise NonFiniteLossError(
                f"the last {self._in_a_row} steps up to {step} were skipped ({what}); the weights are those "
                f"after step {step - self._in_a_row}, and the newest checkpoint is sound. Lower "
                "optim.learning_rate, or look at the records of these steps"
            )


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    names = [
        name for name in (rows[0] if rows else {}) if name != "skipped" and not name.startswith("update_")
    ]
    return {f"train/{name}": float(np.mean([row[name] for row in rows])) for name in names}
