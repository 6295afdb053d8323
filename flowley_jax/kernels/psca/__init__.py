"""Progressive soft-masked cross-attention."""

from flowley_jax.kernels.psca.api import Implementation, psca

__all__ = ["Implementation", "psca"]
