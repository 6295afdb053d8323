"""The network: pure NNX, ignorant of data, training and meshes."""

from flowley_jax.model.config import ModelConfig
from flowley_jax.model.flowley import Flowley

__all__ = ["Flowley", "ModelConfig"]
