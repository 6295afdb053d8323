"""`captions.jsonl`: every answer with its provenance, appended as it comes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowley_jax.whole_files import append_line, naming

Answer = dict[str, Any]


class Journal:
    """The answers of one folder, of any number of runs, models and prompts."""

    def __init__(self, path: Path):
        self.path = path
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        # A run that was killed may have left half a line.
        if path.exists() and path.stat().st_size and path.read_bytes()[-1:] != b"\n":
            append_line(path, "")

    def add(self, answer: Answer) -> None:
        """Keeps an answer.

        Raises:
          FlowleyError: the disk refuses.
        """
        append_line(self.path, json.dumps(answer, ensure_ascii=False))

    def of(self, made_by: str) -> dict[str, Answer]:
        """The latest answer for each id that was made in one way."""
        return {answer["id"]: answer for answer in self._lines() if answer["made_by"] == made_by}

    def last(self) -> str | None:
        """How the latest answer was made."""
        made_by = None
        for answer in self._lines():
            made_by = answer["made_by"]
        return made_by

    def _lines(self) -> Iterator[Answer]:
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    # Half a line; its clip is done again.
                    continue
