"""Progressive soft-masked cross-attention."""

from flowley_jax.kernels.psca.api import psca

__all__ = ["psca"]
