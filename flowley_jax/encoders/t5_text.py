"""Features of captions from T5's encoder, from a bundle of published weights."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flowley_jax.common.component import ProgramMemory
from flowley_jax.common.device_batches import DeviceBatches, Replicated
from flowley_jax.common.ranges import Count
from flowley_jax.interop.bundles import Bundle
from flowley_jax.interop.pretrained import Dtype, PretrainedComponent
from flowley_jax.interop.tokenizers import read_tokenizer, tokens_of
from flowley_jax.networks.t5 import T5Encoder

BATCH_SIZE = 32
_TINY = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Text(PretrainedComponent):
    """Text encoder of the published system; see `TextEncoder`.

    Features are T5's last hidden states divided, channel by channel, by their norm over all tokens, padding
    included; the published model was trained on these.

    Attributes:
      bundle: bundle of a T5 encoder and its tokenizer, which is read on the first call.
      max_tokens: length to which captions are padded or cut.
      dtype: compute type.
    """

    name: ClassVar[str] = "t5"
    version: ClassVar[int | None] = 1
    format: ClassVar[str] = "t5"

    bundle: Bundle
    max_tokens: Count = 77
    dtype: Dtype = "float32"

    @property
    def dim(self) -> int:
        return self.bundle.config.d_model

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode N captions to features (N, max_tokens, dim) float32 and lengths (N,) int32.

        Lengths include the end-of-text token. A caption that is too long is cut, with a warning.
        """
        ids, valid = self.tokens(captions)
        return self._program(ids, valid), valid.sum(axis=1, dtype=np.int32)

    def tokens(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenize N captions.

        Returns:
          Padded ids (N, max_tokens) int32, and a mask of the same shape that is true at the caption's tokens.
        """
        return tokens_of(self._tokenizer, captions, self.max_tokens)

    def memory(self, *, clips: int, length: int) -> ProgramMemory:
        """Return the memory that one caption per clip needs; every caption has `max_tokens` tokens."""
        del length
        shape = (clips, self.max_tokens)
        ids, valid = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.bool_))
        return self.program_memory(normalised_states, ids, valid)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return read_tokenizer(self.bundle.check_tokenizer(), "AutoTokenizer")

    @functools.cached_property
    def _program(self) -> DeviceBatches:
        model = Replicated(self.bundle.load(dtype=self.dtype))
        return DeviceBatches(normalised_states, model, batch_size=BATCH_SIZE)


def normalised_states(model: T5Encoder, ids: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the encoder's states divided by their norm over the tokens.

    Args:
      model: the encoder.
      ids: tokens (N, Tt).
      valid: mask (N, Tt) of the tokens that may be attended to.

    Returns:
      Features (N, Tt, dim) float32.
    """
    states = model(ids, valid)
    norm = jnp.linalg.norm(states, axis=1, keepdims=True)
    return states / jnp.maximum(norm, _TINY)
