"""Convolution over time and its gradient on CPU, against sums over taps in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flowley_jax.model.layers import convolution


def _shifted(x, taps):
    """Return the input (B, T, I) shifted for every tap, (taps, B, T, I)."""
    before = (taps - 1) // 2
    padded = np.pad(x, ((0, 0), (before, taps - 1 - before), (0, 0)))
    return np.stack([padded[:, tap : tap + x.shape[1]] for tap in range(taps)])


@settings(deadline=None, max_examples=12)
@given(taps=st.integers(1, 8), length=st.integers(1, 12), batch=st.integers(1, 3), seed=st.integers(0, 99))
def test_convolution_and_its_gradient_match_sums_over_taps(taps, length, batch, seed):
    draw = np.random.default_rng(seed)
    x, kernel, cotangent = (
        draw.normal(size=shape) for shape in ((batch, length, 3), (taps, 3, 5), (batch, length, 5))
    )
    y, vjp = jax.vjp(convolution, *(jnp.asarray(value, jnp.float32) for value in (x, kernel)))
    x_gradient, kernel_gradient = vjp(cotangent.astype(np.float32))
    shifted = _shifted(x, taps)
    np.testing.assert_allclose(y, np.einsum("kbti,kio->bto", shifted, kernel), rtol=1e-5, atol=1e-5)
    expected = np.einsum("kbti,bto->kio", shifted, cotangent)
    np.testing.assert_allclose(kernel_gradient, expected, rtol=1e-5, atol=2e-5)
    # The gradient with respect to x is the transposed map, written out over a basis of all inputs.
    basis = np.eye(length * 3).reshape(-1, length, 3)
    outputs = np.einsum("knti,kio->nto", _shifted(basis, taps), kernel)
    expected = np.einsum("nto,bto->bn", outputs, cotangent).reshape(x.shape)
    np.testing.assert_allclose(x_gradient, expected, rtol=1e-5, atol=1e-5)
