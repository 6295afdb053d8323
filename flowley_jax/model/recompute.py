"""Functions whose backward pass computes again what it needs, instead of storing it in the forward pass."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

from flowley_jax.common.devices import platform_in_use

_EVERYTHING_STORED = contextvars.ContextVar("everything_stored", default=False)


@contextlib.contextmanager
def everything_stored() -> Iterator[None]:
    """Trace programs in which nothing is computed again, to count their FLOPs.

    JAX traces a function once for each kind of arguments: trace a new one.
    """
    token = _EVERYTHING_STORED.set(True)
    try:
        yield
    finally:
        _EVERYTHING_STORED.reset(token)


def recomputed(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return a function with the same values and gradients, of which only the arguments are stored.

    Args:
      function: of positional arguments. What it stores otherwise must depend on the first one.
    """
    on_cpu = jax.custom_vjp(function)
    on_cpu.defvjp(
        lambda *arguments: (function(*arguments), arguments), functools.partial(_backward, function)
    )

    @functools.wraps(function)
    def call(*arguments: Any) -> jax.Array:
        if _EVERYTHING_STORED.get():
            return function(*arguments)
        return (on_cpu if platform_in_use() == "cpu" else jax.checkpoint(function))(*arguments)

    return call


def _backward(function: Callable[..., jax.Array], arguments: tuple, cotangent: jax.Array) -> tuple:
    # XLA:CPU drops the barriers of jax.checkpoint, and then merges the second computation with the first one,
    # whose result it has to store. It cannot if the second one depends on the cotangent. XLA keeps a product
    # with zero.
    first, *rest = arguments
    zero = 0.0 * cotangent[(0,) * cotangent.ndim]
    return jax.vjp(function, first + zero.astype(first.dtype), *rest)[1](cotangent)
