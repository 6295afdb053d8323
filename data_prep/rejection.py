"""Reasons why clips cannot be used, and a function that turns reading errors into them."""

import dataclasses
import enum
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from data_prep.storage import local_copy
from flowley_jax.errors import FlowleyError
from flowley_jax.media.inputs import MediaError

T = TypeVar("T")


class Reason(enum.StrEnum):
    """The codes of `rejected.tsv`."""

    MISSING = "missing"  # no such file
    UNREADABLE = "unreadable"  # not a media file, or a damaged one
    TRUNCATED = "truncated"  # ends before the length stated in its header
    NO_VIDEO = "no_video"
    NO_AUDIO = "no_audio"
    PICTURE = "picture"  # an image, or a video that shows the same image throughout
    OFFSET = "offset"  # picture and sound begin apart and overlap too little
    HOLE = "hole"  # a part of the sound is missing
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    FRAME_RATE = "frame_rate"
    SILENT = "silent"
    TIMEOUT = "timeout"  # not read within the time limit
    CRASH = "crash"  # the process that read it died
    NOT_FINITE = "not_finite"  # its features are not finite, or overflow the stored type
    CAPTION = "caption"  # the text encoder refuses its caption
    MORE_CAPTION = "more_caption"  # the text encoder refuses a caption from another source; the clip is kept


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A reason code and one line of detail."""

    reason: str
    detail: str

    @classmethod
    def from_json(cls, value: Any) -> "Rejection":
        """Return a stored rejection.

        Raises:
          ValueError: the value is not a JSON object with one of the reasons and a line of text.
        """
        if not isinstance(value, Mapping) or value.keys() != {"reason", "detail"}:
            raise ValueError("a rejection must have a reason and a detail")
        reason, detail = value["reason"], value["detail"]
        if reason not in list(Reason) or not isinstance(detail, str):
            raise ValueError(f"reason {reason!r} with the detail {detail!r} is unknown")
        return cls(reason, " ".join(detail.split()))


class RejectedError(FlowleyError):
    """A clip that can be read but not used."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason


def read_or_reject(path: str, read: Callable[[Path], T]) -> T | Rejection:
    """Return what `read` makes of a file, or the reason why the file cannot be used. Never raise.

    Args:
      path: the file; a remote file is copied to this machine first.
      read: function of the local path.
    """
    local = Path(path)
    try:
        with local_copy(path) as local:
            return read(local)
    except (MediaError, RejectedError) as error:
        detail = str(error).removeprefix(f"{local}: ")
        return Rejection(str(error.reason), " ".join(detail.split()))
    except Exception as error:  # A file that breaks a decoder in a new way must not end the run.
        return Rejection(Reason.UNREADABLE, one_line(error))


def one_line(error: Exception) -> str:
    """Return an exception's message on one line, or its type if it has no message."""
    return plain_line(str(error)) or type(error).__name__


def plain_line(text: str) -> str:
    """Return text on one line, without control characters, which a terminal would obey."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())
