"""Suffixes of media files: which are read, and which are written."""

from pathlib import Path

# Files of a folder that count as videos. A file named by itself may have any suffix that FFmpeg reads.
VIDEO_SUFFIXES = (
    ".mp4",
    ".mkv",
    ".mov",
    ".webm",
    ".avi",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".flv",
    ".wmv",
    ".ts",
)
# Containers that `mux_audio` copies a picture into.
MUX_SUFFIXES = (".mp4", ".mkv", ".mov")
# Sound files that `write_audio` writes.
AUDIO_SUFFIXES = (".wav", ".flac")


def is_video(path: Path) -> bool:
    """Return whether a file of a folder counts as a video, by its suffix in any case."""
    return has_suffix(path, VIDEO_SUFFIXES)


def has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Return whether a path ends in one of several suffixes, in any case."""
    return path.suffix.lower() in suffixes
