"""Fingerprints of picture and sound, by which copies of a clip are known.

Both have 256 bits, few of which change when a clip is encoded again, scaled, or made louder or quieter.
Copies that begin elsewhere, are cropped, mirrored or slower, or have a caption burnt in over much of the
picture have other fingerprints and are not found, nor are those made so small or coarse that broad shades
changed.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from data_prep.files import local_copy
from data_prep.rejection import Reason, Rejection, one_line
from flowley_jax.audio.mel import MEL_16K, log_mel
from flowley_jax.media.read import MediaError, probe, read_audio, read_frames_at

_SHARES = (1 / 8, 3 / 8, 5 / 8, 7 / 8)
_GRID = 16
_SECONDS_OF_SOUND = 8.0
_SILENT_PEAK = 1e-3
# Samples: encoders fill up their last block, so that lengths count in steps, and may lack a little of one.
_STEP, _PADDING = 8000, 1600
# Of 80 mel bins those below 5.3 kHz: encoders leave out what is above when bits are few.
_BINS = 68
# Logarithm to base 10 below the loudest bin, under which there is mostly what an encoder adds.
_DEPTH = 2.5
# Steps that encoding does not turn round: of log energy, and of grey in steps of 8 bits.
_LEAST_STEP = 0.02
_LEAST_SHADE = 2.0
# Of 256 neighbours in a picture, how many must differ by more.
_LEAST_SHADES = 96


@dataclasses.dataclass(frozen=True)
class Fingerprints:
    """Of a clip, each as 64 hexadecimal digits; None where there is nothing to tell one clip from another.

    Attributes:
      lacks: the stream that is not there.
    """

    picture: str | None
    sound: str | None
    lacks: Literal["", "picture", "sound"] = ""


def fingerprints_of(path: str) -> Fingerprints | Rejection:
    """Reads a clip; whatever is wrong with it is the result, not an exception."""
    try:
        with local_copy(path) as local:
            info = probe(local)
            picture = None if info.width is None else picture_bits(read_frames_at(local, _SHARES))
            sound = sound_bits(_wave(local)) if info.has_audio else None
            lacks = "picture" if info.width is None else "" if info.has_audio else "sound"
            return Fingerprints(_digits(picture), _digits(sound), lacks)
    except MediaError as error:
        return Rejection(error.reason, one_line(error).removeprefix(f"{path}: "))
    except Exception as error:  # A file that breaks a decoder in a new way must not end the run.
        return Rejection(Reason.UNREADABLE, one_line(error))


def picture_bits(frames: Sequence[np.ndarray]) -> np.ndarray | None:
    """Of four frames, whether each of 8 × 9 grey cells is brighter than the one to its left.

    Args:
      frames: uint8 (H, W, 3) of any size.

    Returns:
      (256,) bool; None where there are fewer frames, or they are too plain to be told from others.
    """
    if len(frames) < len(_SHARES):
        return None
    shades = np.diff(np.stack([_cells(frame) for frame in frames]), axis=2).ravel()
    if np.sum(np.abs(shades) > _LEAST_SHADE) < _LEAST_SHADES:
        return None
    return shades > _LEAST_SHADE


def sound_bits(wave: np.ndarray) -> np.ndarray | None:
    """Over 17 × 17 cells of time and mel, whether the step of log energy to the next pitch grows with time.

    Args:
      wave: float (N,), at 16 kHz.

    Returns:
      (256,) bool; None where it is as good as silent, or shorter than half a second.
    """
    steps = (len(wave) + _PADDING) // _STEP
    if steps == 0 or np.abs(wave).max() < _SILENT_PEAK:
        return None
    wave = np.pad(wave, (0, _PADDING))[: steps * _STEP]
    peak = np.abs(wave).max()
    mel = log_mel(wave / peak, MEL_16K)
    audible = np.maximum(mel, mel.max() - _DEPTH)[:, :_BINS]
    energy = np.log10(_means(_means(10.0**audible, axis=0), axis=1))
    return np.diff(np.diff(energy, axis=0), axis=1).ravel() > _LEAST_STEP


def _cells(frame: np.ndarray) -> np.ndarray:
    grey = Image.fromarray(np.ascontiguousarray(frame)).convert("L").convert("F")
    return np.asarray(grey.resize((9, 8), Image.Resampling.BOX))


def _means(values: np.ndarray, *, axis: int) -> np.ndarray:
    edges = np.linspace(0, values.shape[axis], _GRID + 2).round().astype(int)
    sums = np.add.reduceat(values, edges[:-1], axis=axis)
    return sums / np.expand_dims(np.diff(edges), 1 - axis)


def _wave(path: Path) -> np.ndarray:
    return read_audio(path, sample_rate=MEL_16K.sample_rate, seconds=_SECONDS_OF_SOUND)


def _digits(bits: np.ndarray | None) -> str | None:
    return None if bits is None else np.packbits(bits).tobytes().hex()
