"""The network: Flax NNX modules that know nothing of data, training or meshes."""

from flowley_jax.model.config import ModelConfig
from flowley_jax.model.flowley import Constant, Flowley, abstract_model, merge_model

__all__ = ["Constant", "Flowley", "ModelConfig", "abstract_model", "merge_model"]
