"""Features of captions from T5's encoder, from a bundle of published weights."""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flowley_jax.common.component import ProgramMemory
from flowley_jax.common.device_batches import DeviceBatches, Replicated
from flowley_jax.common.ranges import Count
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bundles import Bundle
from flowley_jax.interop.pretrained import Dtype, PretrainedComponent
from flowley_jax.networks.t5 import T5Encoder

log = logging.getLogger(__name__)
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
        tokenized = self._tokenizer(list(captions))["input_ids"]
        ids = np.full((len(tokenized), self.max_tokens), self._tokenizer.pad_token_id, np.int32)
        valid = np.zeros(ids.shape, np.bool_)
        for row, (caption, tokens) in enumerate(zip(captions, tokenized, strict=True)):
            if len(tokens) > self.max_tokens:
                log.warning(
                    "prompt '%s…' has %d tokens and is cut to %d", caption[:40], len(tokens), self.max_tokens
                )
                tokens = [*tokens[: self.max_tokens - 1], tokens[-1]]
            ids[row, : len(tokens)] = tokens
            valid[row, : len(tokens)] = True
        return ids, valid

    def memory(self, *, clips: int, length: int) -> ProgramMemory:
        """Return the memory that one caption per clip needs; every caption has `max_tokens` tokens."""
        del length
        shape = (clips, self.max_tokens)
        ids, valid = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.bool_))
        return self.program_memory(normalised_states, ids, valid)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        auto_tokenizer = _import_auto_tokenizer()
        folder = self.bundle.check_tokenizer()
        try:
            return auto_tokenizer.from_pretrained(folder, local_files_only=True)
        # The library lets through whatever its parsers raise.
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise FlowleyError(f"{folder}: the tokenizer cannot be read ({reason})") from error

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


def _import_auto_tokenizer() -> Any:
    # On import, the library advises to install PyTorch, which a tokenizer does not need.
    logger = logging.getLogger("transformers")
    logger.addFilter(_is_not_advice)
    try:
        from transformers import AutoTokenizer
    finally:
        logger.removeFilter(_is_not_advice)
    return AutoTokenizer


def _is_not_advice(record: logging.LogRecord) -> bool:
    return "PyTorch was not found" not in record.getMessage()
