"""Checkpoints of a run, written by Orbax: the state, the position in the data, and checksums, atomically."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from orbax.checkpoint import v1 as ocp

from flowley_jax.common import distributed
from flowley_jax.common.files import name_errors
from flowley_jax.common.trees import named_leaves, unnamed
from flowley_jax.errors import FlowleyError
from flowley_jax.runs.stored_trees import (
    RETRY_SECONDS,
    DamagedError,
    UnreadableError,
    check_shapes,
    checkpoint_folder,
    checksums,
    read_arrays,
    read_info,
    verify,
    writing,
)
from flowley_jax.training.state import TrainState

log = logging.getLogger(__name__)
# Orbax's type annotations reject its own policies.
_policies: Any = ocp.training.preservation_policies
_ITEM = "state"
DAMAGED = "damaged"
_Read = TypeVar("_Read")


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

        Newer checkpoints that are damaged are moved to `workdir/damaged`, with a warning. A checkpoint that
        only cannot be read now is never moved. Collective: all processes return the same step, or fail.

        Args:
          like: a state of arrays or shapes, with the shardings of the result.

        Raises:
          FlowleyError: no checkpoint is intact, the newest one cannot be read now, or it belongs to another
            network. No file is moved then.
        """
        problems: dict[int, DamagedError] = {}
        for step in self._steps_of_first():
            try:
                restored = self._read(step, like)
            except DamagedError as error:
                problems[step] = error
                continue
            self._move_damaged(problems)
            return restored
        raise FlowleyError(
            f"{next(iter(problems.values()))}; no earlier one is intact either. Put one from a backup in its "
            "place, or train from this run's averages (--config.start.weights) in another --workdir"
        )

    def _steps_of_first(self) -> Iterator[int]:
        """Yield the steps that the first process sees, newest first; another disk may not show them yet."""
        steps = sorted((entry.step for entry in self._checkpointer.checkpoints), reverse=True)
        for index in range(distributed.broadcast_from_first(len(steps))):
            yield distributed.broadcast_from_first(steps[index] if distributed.is_first() else 0)

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        kept, checkpointer = like.without_frozen, self._checkpointer

        def read_checked_info() -> Any:
            info = read_info(checkpointer, step)
            check_shapes(checkpointer, step, info, _ITEM, kept)
            return info.custom_metadata["data"], info.custom_metadata["checksums"]

        data, sums = self._in_all_processes(read_checked_info, step)
        loaded = self._in_all_processes(lambda: read_arrays(checkpointer, step, _ITEM, kept), step)
        verify(checkpointer, step, loaded, sums, _ITEM)
        return unnamed(loaded, kept)._replace(frozen=like.frozen), data

    def _in_all_processes(self, read: Callable[[], _Read], step: int) -> _Read:
        """Read a part of a checkpoint in every process; if it fails in one of them, it fails in all.

        All try again if the reason in one of them may pass.
        """
        result, problem, unreadable = None, None, False
        for seconds in (*RETRY_SECONDS, None):
            problem = None
            try:
                result = read()
            except FlowleyError as error:
                problem = error
            if distributed.all_processes(problem is None):
                return cast(_Read, result)
            unreadable = not distributed.all_processes(not isinstance(problem, UnreadableError))
            if not unreadable or seconds is None:
                break
            log.warning("%s; trying again", problem or "another process cannot read a checkpoint now")
            time.sleep(seconds)
        folder = checkpoint_folder(self._checkpointer, step)
        if unreadable:
            raise UnreadableError(
                f"{problem or f'{folder}: another process cannot read it now'}. Nothing was moved: run the "
                "same command when it can be read, or remove that folder to resume from the one before"
            )
        foreign = not distributed.all_processes(problem is None or isinstance(problem, DamagedError))
        kind = FlowleyError if foreign else DamagedError
        raise kind(str(problem or f"{folder}: another process cannot use it")) from problem

    def _move_damaged(self, problems: Mapping[int, DamagedError]) -> None:
        damaged = self._workdir / DAMAGED

        def move() -> None:
            for step in problems:
                target = damaged / str(step)
                while target.exists():
                    target = target.with_name(f"{target.name}_again")
                with name_errors(target):
                    damaged.mkdir(exist_ok=True)
                    checkpoint_folder(self._checkpointer, step).rename(target)

        if problems:
            distributed.first_does(move, failure=f"{damaged}: damaged checkpoints cannot be moved there")
            self._checkpointer.reload()
        for problem in problems.values():
            log.warning("%s; moved to %s, resuming from the previous checkpoint", problem, damaged)
