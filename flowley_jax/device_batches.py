"""A network over many items: batches of few sizes, split over this process's devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_AXIS = "data"


class Replicated:
    """A model whose weights lie on every device of this process, for any number of `DeviceBatches`."""

    def __init__(self, model: nnx.Module):
        self.mesh = Mesh(np.array(jax.local_devices()), (_AXIS,))
        self.graphdef, state = nnx.split(model)
        self.state = jax.device_put(state, NamedSharding(self.mesh, PartitionSpec()))


class DeviceBatches:
    """A jitted function of a model and of arrays with one row per item.

    Every device takes a part of the rows. Batches are filled up to a power of two times the number of
    devices, so that few programs are compiled for any number of items.
    """

    def __init__(self, function: Callable[..., Any], model: Replicated, *, batch_size: int):
        """
        Args:
          function: takes the model and arrays (B, …), gives arrays (B, …).
          batch_size: items on the devices at once; rounded up to a multiple of their number.
        """
        devices = model.mesh.size
        self._rows = NamedSharding(model.mesh, PartitionSpec(_AXIS))
        self._state = model.state
        self._sizes = [devices]
        while self._sizes[-1] < batch_size:
            self._sizes.append(min(2 * self._sizes[-1], -(-batch_size // devices) * devices))
        self._program = jax.jit(functools.partial(_apply, function, model.graphdef))

    def __call__(self, *arrays: np.ndarray) -> Any:
        """Arrays (N, …) of any N to the function's results (N, …), NumPy arrays."""
        count = len(arrays[0])
        # A batch is dispatched before the one before it is fetched, so that devices do not wait for copies.
        parts: list[Any] = []
        waiting: tuple[Any, int] | None = None
        for start in range(0, max(count, 1), self._sizes[-1]):
            batch = [array[start : start + self._sizes[-1]] for array in arrays]
            rows = len(batch[0])
            size = next(size for size in self._sizes if size >= rows)
            placed = [jax.device_put(_filled(array, size), self._rows) for array in batch]
            found = self._program(self._state, *placed)
            if waiting is not None:
                parts.append(_fetched(*waiting))
            waiting = found, rows
        assert waiting is not None
        parts.append(_fetched(*waiting))
        return jax.tree.map(lambda *pieces: np.concatenate(pieces), *parts)


def _apply(function: Callable[..., Any], graphdef: nnx.GraphDef, state: nnx.State, *arrays) -> Any:
    return function(nnx.merge(graphdef, state), *arrays)


def _filled(array: np.ndarray, size: int) -> np.ndarray:
    missing = size - len(array)
    return np.pad(array, ((0, missing), *((0, 0) for _ in array.shape[1:]))) if missing else array


def _fetched(found: Any, rows: int) -> Any:
    return jax.tree.map(lambda array: np.asarray(array)[:rows], found)
