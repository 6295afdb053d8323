"""Published weights into modules whose attributes are called as in the file, by one walk over their paths."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowley_jax.errors import FlowleyError

Layout = Callable[[str, np.ndarray], np.ndarray]
"""Name and array of the file to the array of the module."""


def load_module(
    build: Callable[[], nnx.Module], arrays: Mapping[str, np.ndarray], *, layout: Layout, what: str
) -> nnx.Module:
    """A module with the weights of a file, float32; names the file has beyond the module's are ignored.

    Args:
      build: makes the module; only its shapes are computed.
      arrays: by the names of the module's paths, joined with dots.
      what: the model, for messages.

    Raises:
      FlowleyError: weights are missing, of another shape, or not finite; all of them are listed.
    """
    module = nnx.eval_shape(build)
    problems, found = [], {}
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        name = ".".join(map(str, path))
        if name not in arrays:
            problems.append(f"missing {name}")
            continue
        value = layout(name, np.asarray(arrays[name]).astype(np.float32))
        if value.shape != variable.shape:
            problems.append(f"{name} has shape {value.shape}, expected {variable.shape}")
        elif not np.isfinite(value).all():
            problems.append(f"{name} has values that are not finite")
        found[name] = value
    if problems:
        shown = "; ".join(problems[:20]) + ("; …" if len(problems) > 20 else "")
        raise FlowleyError(
            f"the weights do not fit {what} ({len(problems)} problem{'s' * (len(problems) > 1)}): {shown}"
        )
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        variable.set_value(jnp.asarray(found[".".join(map(str, path))]))
    return module


def count_of(arrays: Mapping[str, np.ndarray], pattern: str) -> int:
    """How many names there are of the pattern, from number 0 on."""
    count = 0
    while pattern.format(count) in arrays:
        count += 1
    return count
