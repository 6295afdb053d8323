"""Helpers for programs that make clip tables: stable random numbers, rows, lists of missing clips."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import flags

from flowley_jax.common.files import check_new_file, write_text
from flowley_jax.data.clip_table import SPLITS, TableClip

# --help of a program shows this flag as its own.
flags.disclaim_key_flags()


def hash_fraction(name: str) -> float:
    """Return a number in [0, 1) that depends only on the name and is uniform over many names."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest()) / 2**48


def make_clip(*, clip_id: str, file: str | Path, caption: str, split: str, label: str) -> TableClip:
    """Return a row of a clip table; line breaks and tabs in the caption and label become spaces."""
    return TableClip(
        id=clip_id,
        video_path=Path(file),
        source=str(file),
        caption=" ".join(caption.split()),
        split=split,
        label=" ".join(label.split()),
    )


def define_overwrite() -> None:
    """Define the flag --overwrite of a program that makes a table."""
    flags.DEFINE_bool("overwrite", False, "Replace existing files. Captions edited in the table are lost.")


def check_outputs(*paths: Path, overwrite: bool) -> None:
    """Check that a program replaces no file by accident; the first path is the table.

    Raises:
      FlowleyError: a file exists, and `overwrite` is false; or a path is a folder.
    """
    for path in paths:
        check_new_file(path, overwrite=overwrite)


def missing_list_path(out: Path) -> Path:
    """Return the path of the list of clips that a table leaves out: `<out>_missing.tsv`."""
    return out.with_name(f"{out.stem}_missing.tsv")


def write_tsv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a TSV file.

    Raises:
      FlowleyError: the file cannot be written.
    """
    write_text(path, "".join("\t".join(row) + "\n" for row in (header, *rows)))


def split_counts(splits: Iterable[str]) -> str:
    """Return the number of clips in each split as text, such as "3 train, 1 test"."""
    counts = Counter(splits)
    return ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split]) or "none"
