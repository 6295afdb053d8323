"""From a silent video and a prompt to sound, with a trained model."""

from flowley_jax.sampling.sampler import Clip, Sampler

__all__ = ["Clip", "Sampler"]
