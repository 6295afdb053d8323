"""Batched application of a network to many items, split over the devices of this process."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_AXIS = "data"


class Replicated:
    """A model with its weights on every device of this process; several `DeviceBatches` can share it."""

    def __init__(self, model: nnx.Module):
        """Copy the weights of a model to every device."""
        self.mesh = Mesh(np.array(jax.local_devices()), (_AXIS,))
        self.graphdef, state = nnx.split(model)
        self.state = jax.device_put(state, NamedSharding(self.mesh, PartitionSpec()))


class DeviceBatches:
    """A jitted function of a model and of arrays with one row per item.

    The rows are divided evenly among the devices. Batches are padded to the number of devices times a power
    of two, so that few programs are compiled, whatever the number of items.
    """

    def __init__(self, function: Callable[..., Any], model: Replicated, *, batch_size: int):
        """Prepare the program; it is compiled on first use.

        Args:
          function: function of the model and of arrays (B, …), which returns arrays (B, …).
          model: the model.
          batch_size: maximum number of items on the devices at once, rounded up to a multiple of the number
            of devices.
        """
        devices = model.mesh.size
        self._row_sharding = NamedSharding(model.mesh, PartitionSpec(_AXIS))
        self._state = model.state
        self._sizes = [devices]
        while self._sizes[-1] < batch_size:
            self._sizes.append(min(2 * self._sizes[-1], -(-batch_size // devices) * devices))
        self._program = jax.jit(functools.partial(_apply, function, model.graphdef))

    def __call__(self, *arrays: np.ndarray) -> Any:
        """Apply the function to arrays (N, …) of any N and return its results (N, …) as NumPy arrays."""
        count = len(arrays[0])
        # Each batch is dispatched before the previous one is fetched, so that no device waits for a copy.
        outputs: list[Any] = []
        previous: tuple[Any, int] | None = None
        for start in range(0, max(count, 1), self._sizes[-1]):
            batch = [array[start : start + self._sizes[-1]] for array in arrays]
            rows = len(batch[0])
            size = next(size for size in self._sizes if size >= rows)
            sharded = [jax.device_put(_pad_rows(array, size), self._row_sharding) for array in batch]
            output = self._program(self._state, *sharded)
            if previous is not None:
                outputs.append(_fetch(*previous))
            previous = output, rows
        assert previous is not None
        outputs.append(_fetch(*previous))
        return jax.tree.map(lambda *chunks: np.concatenate(chunks), *outputs)


def _apply(function: Callable[..., Any], graphdef: nnx.GraphDef, state: nnx.State, *arrays: jax.Array) -> Any:
    return function(nnx.merge(graphdef, state), *arrays)


def _pad_rows(array: np.ndarray, size: int) -> np.ndarray:
    missing = size - len(array)
    return np.pad(array, ((0, missing), *((0, 0) for _ in array.shape[1:]))) if missing else array


def _fetch(output: Any, rows: int) -> Any:
    return jax.tree.map(lambda array: np.asarray(array)[:rows], output)
