"""Read the sounds of a folder, which are named by clip id."""

import dataclasses
import unicodedata
from pathlib import Path

import numpy as np

from flowley_jax.errors import FlowleyError
from flowley_jax.media.formats import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from flowley_jax.media.read import read_audio
from flowley_jax.sampling.sample_log import SAMPLE_LOG_FILE

SUFFIXES = (*AUDIO_SUFFIXES, ".mp3", ".m4a", ".aac", ".ogg", ".opus", *VIDEO_SUFFIXES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sounds:
    """The sounds of a folder.

    Attributes:
      waves: float32 (N,) by clip id: the file name without extension, in the Unicode form NFC.
      unreadable: one line for every file that cannot be used.
      ignored: names of files whose suffix is not that of a sound or a video.
    """

    waves: dict[str, np.ndarray]
    unreadable: list[str]
    ignored: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundFiles:
    """The files of sounds in a folder.

    Attributes:
      paths: file by clip id.
      unreadable, ignored: see `Sounds`.
    """

    paths: dict[str, Path]
    unreadable: list[str]
    ignored: list[str]


def sound_files(folder: Path) -> SoundFiles:
    """Return the sound files and videos of a folder by clip id.

    Hidden files, sub-folders and the log of the sampler are skipped. Suffixes may be in upper case.

    Raises:
      FlowleyError: the folder is missing.
    """
    if not folder.is_dir():
        raise FlowleyError(f"{folder}: no such folder; sounds named by clip id are expected there")
    files = SoundFiles(paths={}, unreadable=[], ignored=[])
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        if path.is_dir() or path.name == SAMPLE_LOG_FILE:
            continue
        if path.suffix.lower() not in SUFFIXES:
            files.ignored.append(path.name)
        elif not path.is_file():
            # Opening a pipe would wait for its writer.
            files.unreadable.append(f"{path}: is not a file")
        elif (clip_id := one_form(path.stem)) in files.paths:
            files.unreadable.append(f"{path}: another sound in this folder is also called {path.stem}")
        else:
            files.paths[clip_id] = path
    return files


def read_sounds(folder: Path, *, sample_rate: int) -> Sounds:
    """Read the sounds of a folder; see `sound_files` for which these are.

    Args:
      folder: folder of the files.
      sample_rate: sample rate to resample to, in Hz.

    Raises:
      FlowleyError: the folder is missing or holds no readable sound.
    """
    files = sound_files(folder)
    sounds = Sounds(waves={}, unreadable=files.unreadable, ignored=files.ignored)
    for clip_id, path in files.paths.items():
        try:
            sounds.waves[clip_id] = read_audio(path, sample_rate=sample_rate)
        except FlowleyError as error:
            sounds.unreadable.append(str(error))
    if not sounds.waves:
        reason = f": {sounds.unreadable[0]}" if sounds.unreadable else ""
        raise FlowleyError(f"{folder}: no readable sound among its {', '.join(SUFFIXES)} files{reason}")
    return sounds


def one_form(clip_id: str) -> str:
    """Return an id in the Unicode form NFC: file systems and archives change names into other forms."""
    return unicodedata.normalize("NFC", clip_id)
