"""Sounds of a folder, named by clip id."""

from pathlib import Path

import numpy as np

from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import read_audio

SUFFIXES = (".wav", ".flac", ".mp4", ".mkv", ".mov")


def read_sounds(folder: Path, *, sample_rate: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Waves float32 (N,) of all sounds and videos in a folder, by file stem, and a line per unreadable file.

    Raises:
      FlowleyError: the folder is missing or holds no readable sound.
    """
    if not folder.is_dir():
        raise FlowleyError(f"{folder}: no such folder; sounds named by clip id are expected there")
    waves, unreadable = {}, []
    for path in sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.name[0] != "."):
        if path.stem in waves:
            unreadable.append(f"{path}: another sound of this folder is called {path.stem} as well")
            continue
        try:
            waves[path.stem] = read_audio(path, sample_rate=sample_rate)
        except FlowleyError as error:
            unreadable.append(str(error))
    if not waves:
        raise FlowleyError(f"{folder}: no readable sound among its {', '.join(SUFFIXES)} files")
    return waves, unreadable
