"""Snapshots of a run's EMA tracks, from which averages of any length are synthesised afterwards."""

import logging
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from flowley_jax.common.trees import named_leaves, unnamed
from flowley_jax.errors import FlowleyError
from flowley_jax.runs.ema import synthesis_weights, weighted_sum, with_unit_sum
from flowley_jax.runs.stored_trees import checksums, load_item, writing

log = logging.getLogger(__name__)
# How far the sum of the weights of an average may be from one before users are told.
_FAITHFUL = 0.05
# Orbax's type annotations reject its own policies.
_policies: Any = ocp.training.preservation_policies


class EmaSnapshots:
    """The stored EMA tracks of one run. Closes its Orbax checkpointer when the `with` block ends."""

    def __init__(self, workdir: Path):
        self._checkpointer = ocp.training.Checkpointer(
            str((workdir / "ema").absolute()), preservation_policy=_policies.PreserveAll()
        )

    def __enter__(self) -> "EmaSnapshots":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """Steps that have a complete snapshot, ascending."""
        return sorted(entry.step for entry in self._checkpointer.checkpoints)

    @property
    def last_step(self) -> int:
        """Step of the newest snapshot. Raises FlowleyError if there is none."""
        if not self.steps:
            raise FlowleyError(
                f"{self._checkpointer.directory}: no EMA snapshots yet; training writes one every "
                "ema.snapshot_every steps and at the end: train longer"
            )
        return self.steps[-1]

    def save(self, step: int, averages: tuple[Any, ...], constants: Any) -> None:
        """Store all EMA tracks after `step` steps; a step that is stored already is skipped.

        Args:
          averages: one tree of parameters for each track.
          constants: the model's constants.

        Raises:
          FlowleyError: the snapshot cannot be written.
        """
        if step in self.steps:
            return
        items = {f"track_{index}": named_leaves(tree) for index, tree in enumerate(averages)}
        items["constants"] = named_leaves(constants)
        sums: Any = {name: checksums(item) for name, item in items.items()}
        with writing(self._checkpointer):
            self._checkpointer.save_checkpointables(
                step, items, custom_metadata={"checksums": sums}, force=True
            )

    def constants(self, like: Any) -> Any:
        """Return the model's constants (latent statistics, empty features) of the last snapshot."""
        return unnamed(self._load(self.last_step, "constants", like), like)

    def synthesise(
        self, like: Any, *, sigma_rels: tuple[float, ...], sigma_rel: float, step: int | None = None
    ) -> Any:
        """Return parameters averaged with relative length `sigma_rel` up to a snapshot.

        Args:
          like: a tree with the structure and shapes of the parameters.
          sigma_rels: lengths of the stored tracks.
          step: step of the snapshot; None for the last one.

        Raises:
          FlowleyError: there is no snapshot at this step, or it is damaged.
        """
        last = self.last_step if step is None else step
        if last not in self.steps:
            raise FlowleyError(
                f"{self._checkpointer.directory}: no EMA snapshot at step {last}; there are "
                f"{', '.join(map(str, self.steps)) or 'none'}"
            )
        if sigma_rel in sigma_rels:
            return unnamed(self._load(last, f"track_{sigma_rels.index(sigma_rel)}", like), like)
        steps = [step for step in self.steps if step <= last]
        stored = [(step, track) for track in range(len(sigma_rels)) for step in steps]
        weights = synthesis_weights(
            [step for step, _ in stored],
            [sigma_rels[track] for _, track in stored],
            sigma_rel=sigma_rel,
            step=last,
        )
        if abs(weights.sum() - 1.0) > _FAITHFUL:
            log.warning(
                "sigma_rel=%g: the %d stored averages only approximate one of this length; exact ones: %s",
                *(sigma_rel, len(stored), ", ".join(f"{stored:g}" for stored in sigma_rels)),
            )
        # Loaded one after the other: a long run has hundreds of them.
        averages = (self._load(step, f"track_{track}", like) for step, track in stored)
        return unnamed(weighted_sum(averages, with_unit_sum(weights).tolist()), like)

    def _load(self, step: int, item: str, like: Any) -> dict[str, Any]:
        return load_item(self._checkpointer, step, item, like)
