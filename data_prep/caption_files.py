"""Captions from sources other than the clip table: TSV files with the columns id and caption."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from flowley_jax.common.files import lfs_note
from flowley_jax.errors import FlowleyError


def parse_caption_flags(texts: Iterable[str]) -> dict[str, str]:
    """Return caption files by source, from values NAME=FILE of the flag --captions.

    Raises:
      FlowleyError: a value does not have this form, or a source is named twice.
    """
    files: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise FlowleyError(f"--captions={text} must be NAME=FILE")
        if name in files:
            raise FlowleyError(f"--captions={text}: {name} is already {files[name]}")
        files[name] = path
    return files


def read_captions(files: Mapping[str, str | Path]) -> dict[str, dict[str, str]]:
    """Return captions by source and id.

    Args:
      files: for each source, a TSV file with the columns id and caption, as `data_prep.soundcap` writes it.

    Raises:
      FlowleyError: a file is missing, lacks a column or repeats an id, or the name of a source is not
        allowed. The message names the file and, for a row, the line.
    """
    return {source: _read_source(source, Path(path)) for source, path in files.items()}


def _read_source(source: str, path: Path) -> dict[str, str]:
    # This import takes seconds, which programs without such captions need not spend.
    from flowley_jax.data.record import TABLE_CAPTIONS

    if source == TABLE_CAPTIONS or not source.isidentifier():
        raise FlowleyError(f"{path}: {source!r} cannot be the name of a source of captions")
    captions: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if note := lfs_note(path):
                raise FlowleyError(f"{path}: is not a table of captions; {note}")
            if missing := {"id", "caption"} - set(reader.fieldnames or ()):
                raise FlowleyError(f"{path}: no column {', '.join(sorted(missing))}; expected id, caption")
            for row in reader:
                if row["id"] in captions:
                    raise FlowleyError(f"{path}, line {reader.line_num}: id {row['id']!r} occurs twice")
                captions[row["id"]] = (row["caption"] or "").strip()
    except FileNotFoundError as error:
        raise FlowleyError(f"--captions: {path}: no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FlowleyError(f"{path}: cannot be read as captions ({error})") from error
    return captions
