"""Loading of published weights into modules whose attributes are named as in the file."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowley_jax.common.trees import describe_leaves, differences, summary
from flowley_jax.errors import FlowleyError

_FLOATS = ("float16", "bfloat16", "float32", "float64")

# Function from the name and array of a published weight to the array of the module.
ArrayConverter = Callable[[str, np.ndarray], np.ndarray]


def load_module(
    build: Callable[[], nnx.Module],
    arrays: Mapping[str, np.ndarray],
    *,
    convert: ArrayConverter,
    title: str,
) -> nnx.Module:
    """Return a module with published weights, in float32. Weights that the module does not have are ignored.

    Args:
      build: function that constructs the module; only its shapes are computed.
      arrays: weights by the paths of the module's parameters, joined with dots.
      convert: conversion of a published array, already float32, to the module's layout.
      title: name of the model, for messages.

    Raises:
      FlowleyError: weights are missing, have the wrong shape, or are not finite; the message names the first
        ones.
    """
    module = nnx.eval_shape(build)
    parameters = {
        ".".join(map(str, path)): variable
        for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param))
    }
    found = {name: np.asarray(arrays[name]) for name in parameters if name in arrays}
    problems = [wrong_type(name, array) for name, array in found.items() if not is_float(array)]
    converted = {name: convert(name, in_float32(array)) for name, array in found.items() if is_float(array)}
    problems += differences(describe_leaves(parameters), describe_leaves(converted))
    problems += [f"{name}: not finite" for name, array in converted.items() if not np.isfinite(array).all()]
    if problems:
        raise FlowleyError(f"the weights do not fit {title}; {summary(problems, 'weights')}")
    for name, variable in parameters.items():
        # Large models would need the memory of both copies at once.
        variable.set_value(jnp.asarray(converted.pop(name)))
    return module


def in_our_layout(name: str, array: np.ndarray) -> np.ndarray:
    """Return a PyTorch kernel (out, in, …) as (…, in, out), and a linear weight (out, in) as (in, out)."""
    del name
    if array.ndim in (4, 5):
        return np.ascontiguousarray(np.moveaxis(array, (1, 0), (-2, -1)))
    return np.ascontiguousarray(array.T) if array.ndim == 2 else array


def is_float(array: np.ndarray) -> bool:
    """Return whether an array has a type that published weights have; quantised ones lack their scales."""
    return array.dtype.name in _FLOATS


def wrong_type(name: str, array: np.ndarray) -> str:
    """Return a phrase on a weight for which `is_float` is false."""
    return f"{name}: has type {array.dtype}, expected {', '.join(_FLOATS)}"


def in_float32(array: np.ndarray) -> np.ndarray:
    """Return an array in float32; values that are too large become infinite."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def count_numbered(arrays: Mapping[str, np.ndarray], pattern: str) -> int:
    """Return the number of consecutive names in `arrays`, counted from 0.

    Args:
      arrays: arrays by name.
      pattern: name with `{}` for the number.
    """
    count = 0
    while pattern.format(count) in arrays:
        count += 1
    return count
