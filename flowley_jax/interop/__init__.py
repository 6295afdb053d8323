"""Conversion between published PyTorch weights and this project's models."""

from flowley_jax.interop.flowley import flowley_from_torch, flowley_to_torch

__all__ = ["flowley_from_torch", "flowley_to_torch"]
