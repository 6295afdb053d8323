"""Captions as normalised states of T5's encoder, from a bundle of published weights."""

import dataclasses
import functools
import logging
import os
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from flowley_jax.device_batches import DeviceBatches, Replicated
from flowley_jax.encoders.t5 import T5Encoder
from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bundles import Bundle

log = logging.getLogger(__name__)
BATCH_SIZE = 32
_TINY = 1e-12
_TOKENIZERS = ("tokenizer.json", "spiece.model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Text:
    """Encoder of captions; see `TextEncoder`.

    Features are the last states divided by their norm over the tokens, each channel alone and with the
    padding, as the published model was trained on them (spec: pipeline.md, "Encoders").

    Attributes:
      bundle: of a T5 encoder and its tokenizer; it is read when the first captions come.
      max_tokens: length that captions are padded or cut to.
      dtype: compute type.
    """

    name: ClassVar[str] = "t5"
    version: ClassVar[int] = 1
    kind: ClassVar[str] = "t5"

    bundle: Bundle
    max_tokens: int = 77
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        self.bundle.check_kind(self.kind)
        if self.max_tokens < 1:
            raise FlowleyError(f"text encoder: max_tokens={self.max_tokens} must be at least 1")

    @property
    def dim(self) -> int:
        return self.bundle.config.d_model

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Captions to features (N, max_tokens, dim) float32 and lengths (N,) int32, end of text included.

        A caption that is too long loses its end, and the log says so.
        """
        ids, valid = self.tokens(captions)
        return self._program(ids, valid), valid.sum(axis=1, dtype=np.int32)

    def tokens(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids (N, max_tokens) int32, padded, and which of them are the caption's."""
        found = self._tokenizer(list(captions))["input_ids"]
        ids = np.full((len(found), self.max_tokens), self._tokenizer.pad_token_id, np.int32)
        valid = np.zeros(ids.shape, np.bool_)
        for row, (caption, tokens) in enumerate(zip(captions, found, strict=True)):
            if len(tokens) > self.max_tokens:
                log.warning(
                    "prompt '%s…' has %d tokens; the encoder takes %d",
                    caption[:40],
                    len(tokens),
                    self.max_tokens,
                )
                tokens = [*tokens[: self.max_tokens - 1], tokens[-1]]
            ids[row, : len(tokens)] = tokens
            valid[row, : len(tokens)] = True
        return ids, valid

    @functools.cached_property
    def _tokenizer(self) -> Any:
        # It would advise to install PyTorch, which a tokenizer does not need.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import AutoTokenizer

        if not any((self.bundle.place / name).is_file() for name in _TOKENIZERS):
            raise FlowleyError(
                f"{self.bundle.folder}: has no tokenizer; put tokenizer.json and tokenizer_config.json "
                "beside the published weights and convert them again"
            )
        try:
            return AutoTokenizer.from_pretrained(self.bundle.place)
        # The library raises whatever its parsers raise.
        except Exception as error:
            raise FlowleyError(f"{self.bundle.folder}: its tokenizer cannot be read ({error})") from error

    @functools.cached_property
    def _program(self) -> DeviceBatches:
        return DeviceBatches(
            normalised_states, Replicated(self.bundle.load(dtype=self.dtype)), batch_size=BATCH_SIZE
        )


def normalised_states(model: T5Encoder, ids: jax.Array, valid: jax.Array) -> jax.Array:
    """The program of a batch of captions."""
    states = model(ids, valid)
    norm = jnp.linalg.norm(states, axis=1, keepdims=True)
    return states / jnp.maximum(norm, _TINY)
