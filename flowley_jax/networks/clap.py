"""LAION-CLAP, embeddings that sounds and captions share (Wu et al. 2022, arXiv 2211.06687).

Attributes are named as in the published file, so that the path of a weight is its name there after the prefix
"module.".
"""

import dataclasses

from flax import nnx
from jaxtyping import Array, Float, Int

from flowley_jax.networks.clap_audio import Htsat, HtsatConfig
from flowley_jax.networks.clap_text import Roberta, RobertaConfig
from flowley_jax.networks.layers import Linear, unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClapConfig:
    """Sizes of both networks.

    Attributes:
      audio, text: sizes of the networks.
      dim: width of the embeddings, and of the hidden layer before them.
      dtype: compute type of the networks; the front end computes in float32.
    """

    audio: HtsatConfig = HtsatConfig()
    text: RobertaConfig = RobertaConfig()
    dim: int = 512
    dtype: str = "float32"


class Clap(nnx.Module):
    """Encoders of sounds and of captions to embeddings of unit length."""

    def __init__(self, config: ClapConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.audio_branch = Htsat(config.audio, dtype=config.dtype, rngs=rngs)
        self.text_branch = Roberta(config.text, dtype=config.dtype, rngs=rngs)
        self.audio_projection = _projection(config.audio.widths[-1], config.dim, rngs=rngs)
        self.text_projection = _projection(config.text.width, config.dim, rngs=rngs)

    def embed_audio(self, waves: Float[Array, "B N"]) -> Float[Array, "B dim"]:
        """Return the embeddings of waves at 48 kHz, of at most 10 s, float32.

        Shorter waves are repeated as often as they fit into 10 s, then followed by zeros.

        Raises:
          FlowleyError: the waves are longer, or have no samples.
        """
        return _projected(self.audio_projection, self.audio_branch(waves))

    def embed_text(self, ids: Int[Array, "B T"]) -> Float[Array, "B dim"]:
        """Return the embeddings of captions, float32.

        Args:
          ids: tokens of RoBERTa, `<s>` first and `</s>` last, padded with 1; the published length T is 77.
        """
        return _projected(self.text_projection, self.text_branch(ids))


def _projection(inputs: int, dim: int, *, rngs: nnx.Rngs) -> nnx.Dict:
    return nnx.Dict({"0": Linear(inputs, dim, rngs=rngs), "2": Linear(dim, dim, rngs=rngs)})


def _projected(projection: nnx.Dict, x: Float[Array, "B D"]) -> Float[Array, "B dim"]:
    return unit(projection["2"](nnx.relu(projection["0"](x))))
