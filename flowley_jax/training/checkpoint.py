"""Checkpoints of a run, written by Orbax: the state, the position in the data, and checksums, atomically."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from flowley_jax.common import distributed
from flowley_jax.common.trees import named_leaves, unnamed
from flowley_jax.errors import FlowleyError
from flowley_jax.runs.stored_trees import checkpoint_folder, checksums, load_item, reading, writing
from flowley_jax.training.state import TrainState

log = logging.getLogger(__name__)
# Orbax's type annotations reject its own policies.
_policies: Any = ocp.training.preservation_policies
_ITEM = "state"
DAMAGED = "damaged"


class RunCheckpoints:
    """The latest `keep` states of a run.

    Saves run in the background; leaving the `with` block waits for the last one.
    """

    def __init__(self, workdir: Path, *, keep: int):
        self._workdir = workdir
        self._checkpointer = ocp.training.Checkpointer(
            str((workdir / "checkpoints").absolute()), preservation_policy=_policies.LatestN(keep)
        )

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, *exc_info: object) -> None:
        with writing(self._checkpointer):
            self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: TrainState, data_state: Mapping[str, Any]) -> None:
        """Store the state after `step` steps; a step that is stored already is skipped.

        Raises:
          FlowleyError: this save cannot start, or the previous one could not finish.
        """
        if step == self.latest_step:
            return
        state = state.without_frozen
        metadata = {"data": dict(data_state), "checksums": checksums(state)}
        with writing(self._checkpointer):
            self._checkpointer.save_checkpointables_async(
                step, {_ITEM: named_leaves(state)}, custom_metadata=metadata, force=True
            )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Return the newest intact state and its data position.

        Newer checkpoints that are damaged are moved to `workdir/damaged`, with a warning.

        Args:
          like: a state of arrays or shapes, with the shardings of the result.

        Raises:
          FlowleyError: no checkpoint is intact, or they belong to another network; the message lists every
            leaf that differs. No file is moved then.
        """
        problems: dict[int, FlowleyError] = {}
        steps = sorted((entry.step for entry in self._checkpointer.checkpoints), reverse=True)
        for step in steps:
            restored, problem = None, None
            try:
                restored = self._read(step, like)
            except FlowleyError as error:
                problem = error
            if distributed.all_processes(problem is None) and restored:
                self._move_damaged(problems)
                return restored
            folder = checkpoint_folder(self._checkpointer, step)
            problems[step] = problem or FlowleyError(f"{folder}: another process cannot read it")
        raise problems[steps[0]]

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        with reading(self._checkpointer, step):
            info: Any = self._checkpointer.checkpointables_metadata(step)
            data, sums = info.custom_metadata["data"], info.custom_metadata["checksums"]
            stored = dict(info.metadata[_ITEM])
        kept = like.without_frozen
        loaded = load_item(self._checkpointer, step, _ITEM, kept, sums=sums, stored=stored)
        return unnamed(loaded, kept)._replace(frozen=like.frozen), data

    def _move_damaged(self, problems: Mapping[int, FlowleyError]) -> None:
        for step, problem in problems.items():
            log.warning(
                "%s; moved to %s, resuming from the previous checkpoint", problem, self._workdir / DAMAGED
            )
            if distributed.is_first():
                target = self._workdir / DAMAGED / str(step)
                while target.exists():
                    target = target.with_name(f"{target.name}_again")
                target.parent.mkdir(exist_ok=True)
                checkpoint_folder(self._checkpointer, step).rename(target)
        distributed.wait_for_all("damaged checkpoints moved")
        if problems:
            self._checkpointer.reload()
