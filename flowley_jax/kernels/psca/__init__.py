"""Progressive soft-masked cross-attention."""

from flowley_jax.kernels.psca.reference import psca

__all__ = ["psca"]
