"""Convolution over time, and the gradient that it has on a CPU, against sums over taps in float64."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flowley_jax.model.convolution import convolution


def _taps(x, taps):
    """x (B, T, I) as every tap sees it, (taps, B, T, I)."""
    before = (taps - 1) // 2
    padded = np.pad(x, ((0, 0), (before, taps - 1 - before), (0, 0)))
    return np.stack([padded[:, tap : tap + x.shape[1]] for tap in range(taps)])


@settings(deadline=None, max_examples=12)
@given(taps=st.integers(1, 8), length=st.integers(1, 12), batch=st.integers(1, 3), seed=st.integers(0, 99))
def test_values_and_gradients(taps, length, batch, seed):
    draw = np.random.default_rng(seed)
    x, kernel, cotangent = (
        draw.normal(size=shape) for shape in ((batch, length, 3), (taps, 3, 5), (batch, length, 5))
    )
    y, vjp = jax.vjp(convolution, *(value.astype(np.float32) for value in (x, kernel)))
    of_x, of_kernel = vjp(cotangent.astype(np.float32))
    seen = _taps(x, taps)
    np.testing.assert_allclose(y, np.einsum("kbti,kio->bto", seen, kernel), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_kernel, np.einsum("kbti,bto->kio", seen, cotangent), rtol=1e-5, atol=2e-5)
    # The gradient by x is the transposed map: <y, cotangent> as a function of x alone.
    basis = np.eye(length * 3).reshape(-1, length, 3)
    answers = np.einsum("knti,kio->nto", _taps(basis, taps), kernel)
    expected = np.einsum("nto,bto->bn", answers, cotangent).reshape(x.shape)
    np.testing.assert_allclose(of_x, expected, rtol=1e-5, atol=1e-5)
