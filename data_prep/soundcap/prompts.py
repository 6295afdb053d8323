"""Instructions to models, each a file that never changes: a better one is a new version."""

import dataclasses
import hashlib
from importlib import resources
from pathlib import Path

from flowley_jax.errors import FlowleyError

# For videos with their sound, and without.
TARGETS, CAPTIONS = "targets_v1", "captions_v1"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """An instruction, its name with the version, and what tells it from any other."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @classmethod
    def read(cls, name: str) -> "Prompt":
        """One of this package by its name, or the text in a file.

        Raises:
          FlowleyError: there is none, naming those that are there.
        """
        folder = resources.files("data_prep.soundcap") / "prompts"
        known = sorted(entry.name.removesuffix(".txt") for entry in folder.iterdir())
        if name in known:
            return cls(name, (folder / f"{name}.txt").read_text(encoding="utf-8").strip())
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            listed = ", ".join(known)
            raise FlowleyError(
                f"prompt {name!r} is none of {listed}, nor a file of text ({error})"
            ) from error
        if not text:
            raise FlowleyError(f"{path}: the prompt is empty")
        return cls(path.stem, text)
