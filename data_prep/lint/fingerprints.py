"""Fingerprints of video and audio, by which copies of a clip are recognised.

Each has 256 bits. Few of them change when a clip is encoded again, scaled, or made louder or quieter. Copies
that start elsewhere, are cropped, mirrored or slowed down, or have captions burnt in over much of the picture
have other fingerprints and are not found. The same holds for copies so small or coarse that broad shades
changed.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from data_prep.rejection import Rejection, read_or_reject
from flowley_jax.audio.mel import MEL_16K, log_mel
from flowley_jax.media.read import probe, read_audio, read_frames_at
from flowley_jax.media.spans import stream_spans

_FRAME_POSITIONS = (1 / 8, 3 / 8, 5 / 8, 7 / 8)
_GRID = 16
_AUDIO_SECONDS = 8.0
# How far into a file its streams are compared.
SPAN_SECONDS = 60.0
_SILENT_PEAK = 1e-3
# Samples. Encoders fill up their last block, so lengths are rounded down to steps; a little may be missing.
_LENGTH_STEP, _LENGTH_TOLERANCE = 8000, 1600
# Only the 68 of 80 mel bins below 5.3 kHz count: at low bit rates, encoders drop higher frequencies.
_BINS = 68
# Energies more than this many decades below the loudest bin are mostly coding noise.
_DECADES = 2.5
# Minimum steps of log energy and of 8-bit grey level: encoding can flip the sign of smaller ones.
_MIN_ENERGY_STEP = 0.02
_MIN_GREY_STEP = 2.0
# Number of the 256 neighbouring cells that must differ by more; plainer pictures all look alike.
_MIN_GREY_STEPS = 96


@dataclasses.dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of a clip, each as 64 hexadecimal digits.

    Attributes:
      picture: fingerprint of the video; None if it is missing or too plain to distinguish it from others.
      sound: fingerprint of the audio; None if it is missing, too quiet or too short.
      lacks: the missing stream.
      offset: seconds by which the sound begins after the picture; None if one of them is missing.
      overlap: seconds, of the first 60, that both cover; None if one of them is missing.
      hole: longest part of the sound, in seconds, that is missing within it.
    """

    picture: str | None
    sound: str | None
    lacks: Literal["", "picture", "sound"] = ""
    offset: float | None = None
    overlap: float | None = None
    hole: float = 0.0


def fingerprints_of(path: str) -> Fingerprints | Rejection:
    """Return the fingerprints of a clip, or the reason why it cannot be read. Never raise."""
    return read_or_reject(path, _read_fingerprints)


def _read_fingerprints(path: Path) -> Fingerprints:
    info = probe(path)
    picture = None if info.width is None else picture_bits(read_frames_at(path, _FRAME_POSITIONS))
    sound = sound_bits(_read_wave(path)) if info.has_audio else None
    lacks = "picture" if info.width is None else "" if info.has_audio else "sound"
    spans = stream_spans(path, seconds=SPAN_SECONDS)
    hole = 0.0 if spans.audio is None else spans.audio.hole
    return Fingerprints(
        _hex_digits(picture), _hex_digits(sound), lacks, spans.offset, spans.overlap, round(hole, 6)
    )


def picture_bits(frames: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return, for four frames, whether each of 8 × 9 grey cells is brighter than the one to its left.

    Args:
      frames: uint8 (H, W, 3) of any size.

    Returns:
      (256,) bool; None for fewer frames, or frames too plain to distinguish them from others.
    """
    if len(frames) < len(_FRAME_POSITIONS):
        return None
    steps = np.diff(np.stack([_grey_cells(frame) for frame in frames]), axis=2).ravel()
    if np.sum(np.abs(steps) > _MIN_GREY_STEP) < _MIN_GREY_STEPS:
        return None
    return steps > _MIN_GREY_STEP


def sound_bits(wave: np.ndarray) -> np.ndarray | None:
    """Return, over 17 × 17 cells of time and mel, whether the energy step to the next pitch grows with time.

    Args:
      wave: float (N,), at 16 kHz.

    Returns:
      (256,) bool; None for audio that is nearly silent or shorter than half a second.
    """
    steps = (len(wave) + _LENGTH_TOLERANCE) // _LENGTH_STEP
    if steps == 0 or np.abs(wave).max() < _SILENT_PEAK:
        return None
    wave = np.pad(wave, (0, _LENGTH_TOLERANCE))[: steps * _LENGTH_STEP]
    peak = np.abs(wave).max()
    mel = log_mel(wave / peak, MEL_16K)
    audible = np.maximum(mel, mel.max() - _DECADES)[:, :_BINS]
    energy = np.log10(_cell_means(_cell_means(10.0**audible, axis=0), axis=1))
    return np.diff(np.diff(energy, axis=0), axis=1).ravel() > _MIN_ENERGY_STEP


def _grey_cells(frame: np.ndarray) -> np.ndarray:
    grey = Image.fromarray(np.ascontiguousarray(frame)).convert("L").convert("F")
    return np.asarray(grey.resize((9, 8), Image.Resampling.BOX))


def _cell_means(values: np.ndarray, *, axis: int) -> np.ndarray:
    edges = np.linspace(0, values.shape[axis], _GRID + 2).round().astype(int)
    sums = np.add.reduceat(values, edges[:-1], axis=axis)
    return sums / np.expand_dims(np.diff(edges), 1 - axis)


def _read_wave(path: Path) -> np.ndarray:
    return read_audio(path, sample_rate=MEL_16K.sample_rate, seconds=_AUDIO_SECONDS)


def _hex_digits(bits: np.ndarray | None) -> str | None:
    return None if bits is None else np.packbits(bits).tobytes().hex()
