"""The length of the clips that a network was trained on, in files of weights and in published settings."""

from collections.abc import Mapping
from typing import Any

from flowley_jax.common.ranges import SECONDS
from flowley_jax.errors import FlowleyError, shown

# The published checkpoints were trained on clips of this length.
PUBLISHED_SECONDS = 8.0
_NOTE = "flowley_jax.seconds"
_FRAMES = "visual_seq_len"


def length_note(seconds: float | None) -> dict[str, str]:
    """Return the note that names a length in a file of weights; empty for None."""
    return {} if seconds is None else {_NOTE: repr(seconds)}


def noted_length(notes: Mapping[str, str]) -> float | None:
    """Return the seconds that the notes of a file name; None if they name none.

    Raises:
      FlowleyError: the note is damaged.
    """
    if _NOTE not in notes:
        return None
    try:
        seconds = float(notes[_NOTE])
    except ValueError as error:
        raise FlowleyError(f"its note {_NOTE}={shown(notes[_NOTE])} must be a number") from error
    if fault := SECONDS.fault(seconds):
        raise FlowleyError(f"its note {_NOTE}={seconds:g} {fault}")
    return seconds


def trained_length(notes: Mapping[str, str], settings: Mapping[str, Any], *, video_fps: float) -> float:
    """Return the seconds that a file's notes name, or else its settings; by default the published length.

    Args:
      notes: notes of the file of weights.
      settings: keywords of the PyTorch model; may be empty.
      video_fps: frames per second of the network's video features.

    Raises:
      FlowleyError: the note or the number of frames in the settings is damaged.
    """
    noted = noted_length(notes)
    if noted is not None or _FRAMES not in settings:
        return PUBLISHED_SECONDS if noted is None else noted
    frames = settings[_FRAMES]
    if not isinstance(frames, int) or isinstance(frames, bool):
        raise FlowleyError(f"{_FRAMES}={shown(frames)} of the PyTorch model must be an int")
    seconds = frames / video_fps
    if fault := SECONDS.fault(seconds):
        raise FlowleyError(
            f"{_FRAMES}={frames} of the PyTorch model is {seconds:g} s at {video_fps:g} frames per second; "
            f"this {fault}"
        )
    return seconds
