"""Prompts for caption models. A prompt file never changes: an improved prompt is a new version."""

import dataclasses
import hashlib
from importlib import resources
from pathlib import Path

from flowley_jax.errors import FlowleyError

# For a model that hears the clip, and for one that only sees it.
TARGETS, CAPTIONS = "targets_v1", "captions_v1"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt and its name, which ends with its version."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the text, which identifies the prompt."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @classmethod
    def read(cls, name: str) -> "Prompt":
        """Read a prompt of this package by its name, or from a text file.

        Raises:
          FlowleyError: neither exists (the message lists the known names), or the file is empty.
        """
        folder = resources.files("data_prep.soundcap") / "prompts"
        known = sorted(entry.name.removesuffix(".txt") for entry in folder.iterdir())
        if name in known:
            return cls(name, (folder / f"{name}.txt").read_text(encoding="utf-8").strip())
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise FlowleyError(
                f"prompt={name!r} must be one of {', '.join(known)}, or a text file ({error})"
            ) from error
        if not text:
            raise FlowleyError(f"{path}: the prompt is empty")
        return cls(path.stem, text)
