"""Checkpoints of a run and snapshots of its EMA tracks, both written by Orbax."""

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from flowley_jax.errors import FlowleyError
from flowley_jax.training import processes
from flowley_jax.training.checksums import checksums
from flowley_jax.training.ema import synthesis_weights, weighted_sum
from flowley_jax.training.sharding import path_name
from flowley_jax.training.state import TrainState

log = logging.getLogger(__name__)
# Orbax annotates its own policies so that they do not fit its own argument.
_policies: Any = ocp.training.preservation_policies


DAMAGED = "damaged"


class RunCheckpoints:
    """The latest states of a run, each with the position in its data and checksums, in one atomic step.

    Saves run in the background; `close` (or leaving the `with` block) waits for the last one.
    """

    def __init__(self, workdir: Path, *, keep: int):
        self._workdir = workdir
        self._checkpointer = ocp.training.Checkpointer(
            str((workdir / "checkpoints").absolute()), preservation_policy=_policies.LatestN(keep)
        )

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, *exc_info) -> None:
        with _writing(self._checkpointer):
            self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: TrainState, data_state: Mapping[str, Any]) -> None:
        """Stores the state after `step` steps, unless that step is stored already.

        Raises:
          FlowleyError: this save could not begin, or the one before could not be finished.
        """
        if step == self.latest_step:
            return
        state = state.as_stored
        metadata = {"data": dict(data_state), "checksums": checksums(state)}
        with _writing(self._checkpointer):
            self._checkpointer.save_checkpointables_async(
                step, {"state": _plain(state)}, custom_metadata=metadata, force=True
            )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest sound state, placed like `like`, of arrays or their shapes, and its data position.

        Damaged checkpoints that are newer are moved to `workdir/damaged`, with a warning.

        Raises:
          FlowleyError: none is sound, or they are of another network, with every leaf that differs; nothing
            is moved then.
        """
        problems: dict[int, FlowleyError] = {}
        steps = sorted((entry.step for entry in self._checkpointer.checkpoints), reverse=True)
        for step in steps:
            found, problem = None, None
            try:
                found = self._read(step, like)
            except FlowleyError as error:
                problem = error
            if processes.everywhere(problem is None) and found:
                self._set_aside(problems)
                return found
            problems[step] = problem or FlowleyError(f"{self._at(step)}: another process cannot read it")
        raise problems[steps[0]]

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        abstract = jax.tree.map(_abstract, _plain(like.as_stored))
        with _reading(self._checkpointer, step):
            found: Any = self._checkpointer.checkpointables_metadata(step)
            metadata, stored = found.custom_metadata, dict(found.metadata["state"])
            data, sums = metadata["data"], metadata["checksums"]
        _check_leaves(abstract, stored, self._at(step))
        with _reading(self._checkpointer, step):
            loaded = self._checkpointer.load_checkpointables(step, {"state": abstract})["state"]
        changed = [name for name, value in checksums(loaded).items() if value != sums.get(name)]
        if changed:
            raise FlowleyError(
                f"{self._at(step)}: damaged: {len(changed)} arrays are not as stored, such as {changed[0]}"
            )
        return _unplain(loaded, like.as_stored)._replace(frozen=like.frozen), data

    def _set_aside(self, problems: Mapping[int, FlowleyError]) -> None:
        for step, problem in problems.items():
            log.warning("%s; moved to %s, going on from an older one", problem, self._workdir / DAMAGED)
            if processes.is_first():
                target = self._workdir / DAMAGED / str(step)
                while target.exists():
                    target = target.with_name(f"{target.name}_again")
                target.parent.mkdir(exist_ok=True)
                self._at(step).rename(target)
        processes.wait_for_all("damaged checkpoints moved")
        if problems:
            self._checkpointer.reload()

    def _at(self, step: int) -> Path:
        return Path(str(self._checkpointer.directory)) / str(step)


class EmaSnapshots:
    """Stored EMA tracks of one run, from which averages of any length are made afterwards."""

    def __init__(self, workdir: Path):
        self._checkpointer = ocp.training.Checkpointer(
            str((workdir / "ema").absolute()), preservation_policy=_policies.PreserveAll()
        )

    def __enter__(self) -> "EmaSnapshots":
        return self

    def __exit__(self, *exc_info) -> None:
        self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """Steps with a complete snapshot, ascending."""
        return sorted(entry.step for entry in self._checkpointer.checkpoints)

    def save(self, state: TrainState, step: int) -> None:
        """Stores all tracks after `step` steps; each step is written once.

        Raises:
          FlowleyError: they could not be written.
        """
        if step in self.steps:
            return
        items = {f"track_{index}": _plain(tree) for index, tree in enumerate(state.averages)}
        items["constants"] = _plain(state.constants)
        sums: Any = {name: checksums(item) for name, item in items.items()}
        with _writing(self._checkpointer):
            self._checkpointer.save_checkpointables(
                step, items, custom_metadata={"checksums": sums}, force=True
            )

    def constants(self, like) -> Any:
        """The model's constants (latent statistics, empty features) of the last snapshot."""
        return _unplain(self._load(self.last_step, "constants", like), like)

    def synthesise(self, like, *, sigma_rels: tuple[float, ...], sigma_rel: float) -> Any:
        """Parameters averaged with relative length `sigma_rel` up to the last snapshot.

        Args:
          like: a tree of the parameters' structure and shapes.
          sigma_rels: lengths of the stored tracks.
        """
        last = self.last_step
        if sigma_rel in sigma_rels:
            return _unplain(self._load(last, f"track_{sigma_rels.index(sigma_rel)}", like), like)
        stored = [(step, track) for track in range(len(sigma_rels)) for step in self.steps]
        weights = synthesis_weights(
            [step for step, _ in stored],
            [sigma_rels[track] for _, track in stored],
            sigma_rel=sigma_rel,
            step=last,
        )
        averages = [self._load(step, f"track_{track}", like) for step, track in stored]
        return _unplain(weighted_sum(averages, weights.tolist()), like)

    def _load(self, step: int, item: str, like) -> dict[str, Any]:
        abstract = jax.tree.map(_abstract, _plain(like))
        folder = f"{self._checkpointer.directory}/{step}"
        with _reading(self._checkpointer, step):
            found: Any = self._checkpointer.checkpointables_metadata(step)
            stored, sums = dict(found.metadata[item]), found.custom_metadata["checksums"][item]
        _check_leaves(abstract, stored, folder)
        with _reading(self._checkpointer, step):
            loaded = self._checkpointer.load_checkpointables(step, {item: abstract})[item]
        if checksums(loaded) != sums:
            raise FlowleyError(f"{folder}: damaged: {item} is not as stored")
        return loaded

    @property
    def last_step(self) -> int:
        """Step of the newest snapshot. Raises FlowleyError if there is none."""
        if not self.steps:
            raise FlowleyError(
                f"{self._checkpointer.directory}: no snapshots of the averaged weights yet; one is written "
                "every ema.snapshot_every steps and at the end: train on"
            )
        return self.steps[-1]


@contextlib.contextmanager
def _writing(checkpointer: ocp.training.Checkpointer) -> Iterator[None]:
    """Turns what a full or broken disk raises into one line."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        cause = re.search(r"([^:]+) \[os_error_code", str(error))
        reason = cause[1].strip() if cause else _short(error)
        raise FlowleyError(
            f"{checkpointer.directory}: a checkpoint cannot be written ({reason}); those before it are whole"
        ) from error


@contextlib.contextmanager
def _reading(checkpointer: ocp.training.Checkpointer, step: int) -> Iterator[None]:
    """Orbax and TensorStore raise many kinds of errors for a damaged tree, or one of other shapes."""
    try:
        yield
    except Exception as error:
        raise FlowleyError(
            f"{checkpointer.directory}/{step}: damaged, or written by an earlier version ({_short(error)})"
        ) from error


def _check_leaves(wanted: Mapping[str, Any], stored: Mapping[str, Any], folder: str | Path) -> None:
    here = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in wanted.items()}
    there = {name: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for name, leaf in stored.items()}
    lines = [
        f"  {name}: {there.get(name, 'missing')} there, {here.get(name, 'unknown')} here"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]
    if lines:
        raise FlowleyError(
            "\n".join([f"{folder}: is of another network; {len(lines)} arrays differ:", *lines])
        )


def _short(error: Exception) -> str:
    """The beginning of a message that can be thousands of characters long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"


def _abstract(leaf):
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)


def _plain(tree) -> Any:
    """Nested dicts of arrays with string keys, the form that other tools can read."""
    return {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _unplain(plain: Mapping[str, Any], like) -> Any:
    leaves = [plain[path_name(path)] for path, _ in jax.tree.leaves_with_path(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
