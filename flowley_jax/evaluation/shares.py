"""Clips that the processes of a run share out among themselves, each with its own devices."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from flowley_jax.common import distributed
from flowley_jax.errors import FlowleyError

_SHOWN_CHARACTERS = 200
_Result = TypeVar("_Result")


def own_rows(count: int) -> np.ndarray:
    """Return the numbers of the clips that this process takes, of `count` clips.

    All processes take equally many, since their arrays must have equal shapes. Where that needs more clips
    than there are, the last clip is taken more than once.
    """
    processes = jax.process_count()
    rows = np.arange(-(-count // processes)) * processes + jax.process_index()
    return np.minimum(rows, count - 1)


def gathered(own: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Return arrays (count, …) of all clips, given those of the `own_rows` of each process.

    Collective: every process must call this, with the same names and shapes.
    """
    if jax.process_count() == 1:
        return dict(own)
    with jax.transfer_guard("allow"):
        together = multihost_utils.process_allgather(dict(own))
    # From (processes, rows, …) to the order of the clips.
    return {
        name: np.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])[:count]
        for name, array in together.items()
    }


def in_all(action: Callable[[], _Result]) -> _Result:
    """Run an action in every process, and let none of them go on if it fails in one; see `all_do`.

    Collective: every process must call this.

    Raises:
      FlowleyError: the action failed, also for lack of memory on the devices.
    """

    def guarded() -> _Result:
        try:
            return action()
        except jax.errors.JaxRuntimeError as error:
            reason = " ".join(str(error).split())
            if "RESOURCE_EXHAUSTED" not in reason:
                raise
            raise FlowleyError(
                f"the devices have too little memory ({reason[:_SHOWN_CHARACTERS]})"
            ) from error

    return distributed.all_do(guarded, failure="the evaluation failed")
