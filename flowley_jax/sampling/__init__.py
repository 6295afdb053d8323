"""Sample sound for silent video and a prompt with a trained model."""

from flowley_jax.sampling.clips import Clip, EncodedClip
from flowley_jax.sampling.sampler import Sampler

__all__ = ["Clip", "EncodedClip", "Sampler"]
