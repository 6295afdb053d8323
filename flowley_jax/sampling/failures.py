"""Errors that cost one clip, while the others are sampled."""

from pathlib import Path

import jax

from flowley_jax.errors import FlowleyError

# Errors of one clip, after which the others are sampled; JAX reports memory that runs out with the last one.
CLIP_ERRORS = (FlowleyError, OSError, MemoryError, jax.errors.JaxRuntimeError)


def check_file(path: Path) -> None:
    """Refuse a pipe or a device: it may never end, and a video is read more than once."""
    if path.exists() and not path.is_file():
        raise FlowleyError(f"{path}: is not a file, and a pipe or a device cannot be sampled")


def failure_line(name: str, error: Exception) -> str:
    """Return one line that names the clip."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, FlowleyError):
        return text if name in text else f"{name}: {text}"
    if isinstance(error, OSError):
        return f"{name}: cannot be read ({error.strerror or text})"
    return f"{name}: no sound could be sampled ({text[:200]})"
