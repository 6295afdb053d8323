"""RoBERTa, the text network of LAION-CLAP (Liu et al. 2019, arXiv 1907.11692).

Attributes are named as in the published file, so that the path of a weight is its name there. Linear weights
are (in, out).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from flowley_jax.errors import FlowleyError
from flowley_jax.networks.layers import Embedding, LayerNorm, Linear, attend

# Token of padding. Positions of the other tokens count from the number after it.
PADDING = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobertaConfig:
    """Sizes of the text network.

    Attributes:
      vocab_size, positions: number of token and position embeddings.
      width, layers, heads: channels, layers and attention heads of the transformer.
      mlp_width: hidden channels of a layer's feed-forward net.
    """

    vocab_size: int = 50_265
    positions: int = 514
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072

    def __post_init__(self):
        if self.width % self.heads:
            raise FlowleyError(f"RoBERTa: width {self.width} must be a multiple of {self.heads} heads")


class Roberta(nnx.Module):
    """Network from tokens to one vector."""

    def __init__(self, config: RobertaConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        self.embeddings = Embeddings(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.pooler = Dense(config.width, config.width, rngs=rngs)

    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """Return the first token's last state after a linear map and tanh, float32.

        Args:
          ids: tokens, padded at the end with `PADDING`, to which no token attends.
        """
        x = self.encoder(self.embeddings(ids).astype(self.dtype), ids != PADDING)
        return jnp.tanh(self.pooler.dense(x[:, 0])).astype(jnp.float32)


class Embeddings(nnx.Module):
    """Normalised sum of the embeddings of tokens and of their positions."""

    def __init__(self, config: RobertaConfig, *, rngs: nnx.Rngs):
        self.word_embeddings = Embedding(config.vocab_size, config.width, rngs=rngs)
        self.position_embeddings = Embedding(config.positions, config.width, rngs=rngs)
        self.token_type_embeddings = Embedding(1, config.width, rngs=rngs)
        self.LayerNorm = LayerNorm(config.width)

    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        valid = (ids != PADDING).astype(jnp.int32)
        positions = PADDING + jnp.cumsum(valid, axis=1) * valid
        x = self.word_embeddings.weight[...][ids] + self.position_embeddings.weight[...][positions]
        return self.LayerNorm(x + self.token_type_embeddings.weight[...][None])


class Encoder(nnx.Module):
    """Sequence of layers."""

    def __init__(self, config: RobertaConfig, *, rngs: nnx.Rngs):
        self.layer = nnx.List([Layer(config, rngs=rngs) for _ in range(config.layers)])

    def __call__(self, x: Float[Array, "B T D"], valid: Array) -> Float[Array, "B T D"]:
        bias = jnp.where(valid[:, None, None], 0.0, jnp.finfo(jnp.float32).min)
        for layer in self.layer:
            x = layer(x, bias)
        return x


class Layer(nnx.Module):
    """Attention and a two-layer net; each is added to its input, and the sum is normalised."""

    def __init__(self, config: RobertaConfig, *, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs=rngs)
        self.intermediate = Dense(config.width, config.mlp_width, rngs=rngs)
        self.output = Output(config.mlp_width, config.width, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], bias: Float[Array, "B 1 1 T"]) -> Float[Array, "B T D"]:
        x = self.attention(x, bias)
        return self.output(jax.nn.gelu(self.intermediate.dense(x), approximate=False), x)


class Attention(nnx.Module):
    """Multi-head attention between tokens, added to them and normalised."""

    def __init__(self, config: RobertaConfig, *, rngs: nnx.Rngs):
        self.self = Projections(config.width, rngs=rngs)
        self.output = Output(config.width, config.width, rngs=rngs)
        self.heads = config.heads

    def __call__(self, x: Float[Array, "B T D"], bias: Float[Array, "B 1 1 T"]) -> Float[Array, "B T D"]:
        query, key, value = self.self.query(x), self.self.key(x), self.self.value(x)
        return self.output(attend(query, key, value, heads=self.heads, bias=bias), x)


class Projections(nnx.Module):
    """Linear maps to queries, keys and values."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.query = Linear(width, width, rngs=rngs)
        self.key = Linear(width, width, rngs=rngs)
        self.value = Linear(width, width, rngs=rngs)


class Output(nnx.Module):
    """Normalised sum of an input and of a linear map of its hidden channels."""

    def __init__(self, inner: int, width: int, *, rngs: nnx.Rngs):
        self.dense = Linear(inner, width, rngs=rngs)
        self.LayerNorm = LayerNorm(width)

    def __call__(self, hidden: Float[Array, "B T I"], x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.LayerNorm(x + self.dense(hidden))


class Dense(nnx.Module):
    """A linear map with the published file's name for it."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.dense = Linear(inputs, outputs, rngs=rngs)
