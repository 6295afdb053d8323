"""Tokenizers of published text encoders: their files, and tokens of captions."""

import dataclasses
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowley_jax.errors import FlowleyError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """Files of the tokenizer of one model format.

    Attributes:
      names: files that go with the weights, as far as they exist.
      whole: groups of them, any one of which is a whole tokenizer.
      needed: phrase for the files that a user must put next to the weights.
    """

    names: tuple[str, ...]
    whole: tuple[frozenset[str], ...]
    needed: str

    def are_whole(self, names: Collection[str]) -> bool:
        """Return whether files of these names are a whole tokenizer."""
        return any(group.issubset(names) for group in self.whole)


# By the name of the model's format.
TOKENIZER_FILES = {
    "t5": TokenizerFiles(
        names=("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model"),
        whole=(frozenset({"tokenizer.json"}), frozenset({"spiece.model"})),
        needed="tokenizer.json and tokenizer_config.json",
    ),
    "clap": TokenizerFiles(
        names=("vocab.json", "merges.txt"),
        whole=(frozenset({"vocab.json", "merges.txt"}),),
        needed="vocab.json and merges.txt of roberta-base",
    ),
}


def read_tokenizer(folder: Path, kind: Literal["AutoTokenizer", "RobertaTokenizer"]) -> Any:
    """Return the tokenizer of a folder, which must hold no other model's files.

    Args:
      folder: the folder.
      kind: name of its class in transformers; AutoTokenizer follows what the files say.

    Raises:
      FlowleyError: its files are damaged, or no tokenizer.
    """
    # On import, the library advises to install PyTorch, which a tokenizer does not need.
    logger = logging.getLogger("transformers")
    logger.addFilter(_is_not_advice)
    try:
        import transformers

        tokenizer = getattr(transformers, kind)
    finally:
        logger.removeFilter(_is_not_advice)
    try:
        return tokenizer.from_pretrained(folder, local_files_only=True)
    # The library lets through whatever its parsers raise.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise FlowleyError(f"{folder}: the tokenizer cannot be read ({reason})") from error


def tokens_of(tokenizer: Any, captions: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokenize N captions. One that is too long is cut, with a warning, and keeps its last token.

    Args:
      tokenizer: tokenizer of transformers.
      captions: the captions.
      length: number of tokens to which captions are padded or cut.

    Returns:
      Padded ids (N, length) int32, and a mask of the same shape that is true at the caption's tokens.
    """
    tokenized = tokenizer(list(captions))["input_ids"]
    ids = np.full((len(tokenized), length), tokenizer.pad_token_id, np.int32)
    valid = np.zeros(ids.shape, np.bool_)
    for row, (caption, tokens) in enumerate(zip(captions, tokenized, strict=True)):
        if len(tokens) > length:
            log.warning("prompt '%s…' has %d tokens and is cut to %d", caption[:40], len(tokens), length)
            tokens = [*tokens[: length - 1], tokens[-1]]
        ids[row, : len(tokens)] = tokens
        valid[row, : len(tokens)] = True
    return ids, valid


def _is_not_advice(record: logging.LogRecord) -> bool:
    return "PyTorch was not found" not in record.getMessage()
