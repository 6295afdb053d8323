"""Progressive soft-masked cross-attention (PSCA)."""

from flowley_jax.kernels.psca.api import psca
from flowley_jax.kernels.psca.mask import SoftMask

__all__ = ["SoftMask", "psca"]
