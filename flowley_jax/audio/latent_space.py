"""The name of a latent space: weights that were trained in one space mean nothing in another."""

import dataclasses
from collections.abc import Mapping

from flowley_jax.audio.protocols import AudioCodec

# Keys of the notes in files of weights.
_IDENTITY, _TITLE = "flowley_jax.codec", "flowley_jax.codec_title"
_SHOWN_DIGITS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentSpace:
    """The latents of one codec. Two spaces are the same if their identities are equal.

    Attributes:
      identity: `AudioCodec.identity`.
      title: the codec, its mel front end and its latent channels, for messages.
    """

    identity: str
    title: str = dataclasses.field(compare=False)

    def __str__(self) -> str:
        return f"{self.title} ({self.identity[:_SHOWN_DIGITS]}…)"

    @classmethod
    def of(cls, codec: AudioCodec) -> "LatentSpace":
        """Return the space of a codec's latents."""
        return cls(identity=codec.identity, title=f"{codec.name} {codec.mel.name}/{codec.latent_dim}")

    @property
    def notes(self) -> dict[str, str]:
        """The notes that name this space in a file of weights."""
        return {_IDENTITY: self.identity, _TITLE: self.title}

    @classmethod
    def from_notes(cls, notes: Mapping[str, str]) -> "LatentSpace | None":
        """Return the space that the notes of a file name; None if they name none."""
        identity = notes.get(_IDENTITY)
        return cls(identity=identity, title=notes.get(_TITLE, "a codec")) if identity else None
