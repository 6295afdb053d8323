"""A text encoder of hashed word vectors, without vocabulary or weights, identical on every machine.

Every word (lower case, without punctuation) has a random unit vector, drawn from a generator that is seeded
with the word's BLAKE2b digest. A special token marks the end of the text.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np

from flowley_jax.common.component import HostComponent
from flowley_jax.common.ranges import SIZES
from flowley_jax.common.typed import check_values
from flowley_jax.errors import FlowleyError

# A word cannot contain a space, so no caption contains this token.
_END_OF_TEXT = "end of text"
_WORD = re.compile(r"\w+")
_SHOWN_CHARACTERS = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class HashedTextEncoder(HostComponent):
    """Text encoder without weights; see the module's docstring and `TextEncoder`.

    Attributes:
      dim: width of a word vector.
      max_tokens: most tokens of a caption, end of text included.
    """

    name: ClassVar[str] = "hashed_words"
    version: ClassVar[int | None] = 1

    dim: Annotated[int, SIZES] = 64
    max_tokens: Annotated[int, SIZES] = 32

    def __post_init__(self):
        check_values(self, self.name)

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode N captions to features (N, max_tokens, dim) float32 and lengths (N,) int32.

        Rows of padding are zero; lengths include the end-of-text token.

        Raises:
          FlowleyError: a caption has more than `max_tokens` tokens, end of text included.
        """
        features = np.zeros((len(captions), self.max_tokens, self.dim), np.float32)
        lengths = np.zeros(len(captions), np.int32)
        for row, caption in enumerate(captions):
            tokens = [*_WORD.findall(caption.lower()), _END_OF_TEXT]
            if len(tokens) > self.max_tokens:
                start = " ".join(caption.split())[:_SHOWN_CHARACTERS]
                raise FlowleyError(
                    f"prompt '{start}…' has {len(tokens)} tokens; the text encoder takes "
                    f"at most max_tokens={self.max_tokens}, end of text included"
                )
            features[row, : len(tokens)] = [_word_vector(token, self.dim) for token in tokens]
            lengths[row] = len(tokens)
        return features, lengths


@functools.lru_cache(maxsize=65_536)
def _word_vector(word: str, dim: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=16).digest(), "little")
    # NumPy keeps the stream of the bit generator PCG64 unchanged, but not that of Generator's methods.
    bits = np.random.PCG64(seed).random_raw(dim)
    uniform = bits.astype(np.float64) / 2.0**63 - 1.0
    return (uniform / np.linalg.norm(uniform)).astype(np.float32)
