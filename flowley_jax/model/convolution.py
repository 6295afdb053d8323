"""Convolution over time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowley_jax.devices import platform_in_use


def convolution(x: Float[Array, "B T I"], kernel: Float[Array, "K I O"]) -> Float[Array, "B T O"]:
    """Zero "same" padding; for an even K, one zero more behind than before."""
    return _with_matrix_gradient(x, kernel) if platform_in_use() == "cpu" else _plain(x, kernel)


def _plain(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, window_strides=(1,), padding="SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )


@jax.custom_vjp
def _with_matrix_gradient(x, kernel):
    return _plain(x, kernel)


def _forward(x, kernel):
    return _plain(x, kernel), (x, kernel)


def _backward(residuals, cotangent):
    # XLA:CPU convolves with the mirrored kernel at four fifths of the speed of one matrix product.
    x, kernel = residuals
    batch, length, outputs = cotangent.shape
    taps, inputs, _ = kernel.shape
    rows, matrix = cotangent.reshape(-1, outputs), kernel.reshape(taps * inputs, outputs)
    spread = jnp.einsum("no,mo->nm", rows, matrix).reshape(batch, length, taps, inputs)
    before = (taps - 1) // 2
    padded = jnp.pad(spread, ((0, 0), (taps - 1 - before, before), (0, 0), (0, 0)))
    of_x = sum(padded[:, taps - 1 - tap :][:, :length, tap] for tap in range(taps))
    _, vjp = jax.vjp(lambda kernel: _plain(x, kernel), kernel)
    return of_x, *vjp(cotangent)


_with_matrix_gradient.defvjp(_forward, _backward)
