"""Representation alignment: a head predicts the clean latent from the middle of the network, in training.

Yu et al. (REPA, arXiv 2410.06940) align a middle block with the features of a pretrained encoder. Here the
clean latent itself is the feature, so that no other network is needed. The head belongs to the training state
and not to the network: averages, snapshots and exports do not have it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowley_jax.flow.losses import cosine_similarity
from flowley_jax.model import ModelConfig
from flowley_jax.model.layers import per_channel, xavier_uniform

# The head's two linear layers, each with a kernel and a bias; empty for runs without alignment.
Head = Mapping[str, Mapping[str, jax.Array]]
NO_HEAD: Head = {}
# Hidden channels of the head, in multiples of the network's width.
_EXPANSION = 4


def new_head(model: ModelConfig, key: jax.Array) -> Head:
    """Return a head with random weights for networks of this configuration."""
    sizes = (model.width, _EXPANSION * model.width, model.audio_dim)
    return {
        name: {
            "kernel": xavier_uniform(key, (inputs, outputs), jnp.float32),
            "bias": jnp.zeros((outputs,), jnp.float32),
        }
        for name, key, inputs, outputs in zip(
            ("first", "second"), jax.random.split(key), sizes[:-1], sizes[1:], strict=True
        )
    }


@jax.named_scope("alignment")
def alignment_loss(
    head: Head, audio_stream: Float[Array, "B Ta D"], clean: Float[Array, "B Ta C"]
) -> Float[Array, ""]:
    """Return the mean of 1 − cosine between the head's prediction and the standardised clean latent.

    Args:
      audio_stream: audio tokens after the multi-stream blocks.
    """
    hidden = jax.nn.silu(_linear(head["first"], audio_stream))
    predicted = _linear(head["second"], hidden).astype(jnp.float32)
    return jnp.mean(1.0 - cosine_similarity(predicted, clean))


def with_head(parameters: Any, head: Head) -> Any:
    """Return one tree of all trained weights; without a head, the parameters as they are."""
    return (parameters, head) if head else parameters


def without_head(trained: Any, head: Head) -> tuple[Any, Head]:
    """Return the parameters and the head of a tree that `with_head` has made.

    Args:
      head: a head like that in the tree, or an empty one.
    """
    return trained if head else (trained, head)


def _linear(layer: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    y = x @ layer["kernel"].astype(x.dtype)
    return y + per_channel(layer["bias"], y)
