"""Published PyTorch weights in this project's model, and back."""

from flowley_jax.interop.flowley import flowley_from_torch, flowley_to_torch

__all__ = ["flowley_from_torch", "flowley_to_torch"]
