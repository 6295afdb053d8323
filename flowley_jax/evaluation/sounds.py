"""Read the sounds of a folder, which are named by clip id."""

from pathlib import Path

import numpy as np

from flowley_jax.errors import FlowleyError
from flowley_jax.media.formats import AUDIO_SUFFIXES, MUX_SUFFIXES
from flowley_jax.media.read import read_audio

SUFFIXES = (*AUDIO_SUFFIXES, *MUX_SUFFIXES)


def read_sounds(folder: Path, *, sample_rate: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read all sound files and videos of a folder.

    Args:
      folder: folder of the files; hidden files and other formats are skipped.
      sample_rate: sample rate to resample to, in Hz.

    Returns:
      Waves, float32 (N,), by file name without extension, and one line for every file that cannot be read.

    Raises:
      FlowleyError: the folder is missing or holds no readable sound.
    """
    if not folder.is_dir():
        raise FlowleyError(f"{folder}: no such folder; sounds named by clip id are expected there")
    waves, unreadable = {}, []
    paths = [path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith(".")]
    for path in sorted(paths):
        if path.stem in waves:
            unreadable.append(f"{path}: another sound in this folder is also called {path.stem}")
            continue
        try:
            waves[path.stem] = read_audio(path, sample_rate=sample_rate)
        except FlowleyError as error:
            unreadable.append(str(error))
    if not waves:
        raise FlowleyError(f"{folder}: no readable sound among its {', '.join(SUFFIXES)} files")
    return waves, unreadable
