"""Sample sound for silent video and a prompt with a trained model."""

from flowley_jax.sampling.sampler import Clip, EncodedClip, Sampler

__all__ = ["Clip", "EncodedClip", "Sampler"]
