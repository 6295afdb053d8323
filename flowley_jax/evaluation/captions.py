"""Tokens of captions for LAION-CLAP, by the tokenizer of its bundle."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowley_jax.errors import FlowleyError
from flowley_jax.interop.bundles import Bundle
from flowley_jax.interop.tokenizers import read_tokenizer, tokens_of
from flowley_jax.networks.clap_text import PADDING

# Number of tokens of every caption in published programs.
LENGTH = 77
_SPECIAL = {"<s>": 0, "<pad>": PADDING, "</s>": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClapCaptions:
    """RoBERTa's tokenizer of captions; upper case and spaces matter.

    Attributes:
      bundle: bundle of LAION-CLAP and its tokenizer, which is read on the first call.
    """

    bundle: Bundle

    def __post_init__(self):
        self.bundle.check_format("clap")

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """Return the tokens of N captions, (N, 77) int32: <s>, the caption, </s>, then padding.

        A caption that is too long is cut, with a warning.

        Raises:
          FlowleyError: the bundle has no tokenizer, or a damaged one or that of another model.
        """
        return tokens_of(self._tokenizer, captions, LENGTH)[0]

    @functools.cached_property
    def _tokenizer(self) -> Any:
        folder = self.bundle.check_tokenizer()
        tokenizer = read_tokenizer(folder, "RobertaTokenizer")
        numbers = dict(zip(_SPECIAL, tokenizer.convert_tokens_to_ids(list(_SPECIAL)), strict=True))
        if numbers != _SPECIAL:
            raise FlowleyError(f"{folder / 'vocab.json'}: has the tokens {numbers}; RoBERTa's are {_SPECIAL}")
        known = self.bundle.config.text.vocab_size
        if len(tokenizer) > known:
            raise FlowleyError(
                f"{folder / 'vocab.json'}: has {len(tokenizer)} tokens, and the text network only {known}"
            )
        return tokenizer
