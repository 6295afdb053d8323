"""Why a clip cannot be used."""

import dataclasses
import enum


class Reason(enum.StrEnum):
    """The codes of `rejected.tsv`."""

    MISSING = "missing"  # no such file
    UNREADABLE = "unreadable"  # no media file, or one that is damaged
    TRUNCATED = "truncated"  # ends before the length that its header states
    NO_VIDEO = "no_video"
    NO_AUDIO = "no_audio"
    PICTURE = "picture"  # a picture, or a video that shows the same picture throughout
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    FRAME_RATE = "frame_rate"
    SILENT = "silent"
    TIMEOUT = "timeout"  # not read within the time limit
    CRASH = "crash"  # the process that read it died
    NOT_FINITE = "not_finite"  # its features are not finite numbers of the stored type
    CAPTION = "caption"  # the text encoder refuses it
    MORE_CAPTION = "more_caption"  # it refuses one of another source; the clip is kept


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A code of `Reason`, and one line that says more."""

    reason: str
    detail: str


def one_line(error: Exception) -> str:
    """What an exception says."""
    return " ".join(str(error).split()) or type(error).__name__
