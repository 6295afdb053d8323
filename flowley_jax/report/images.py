"""Arrays and files as data URIs, so that the page carries them itself."""

import base64
import io
import mimetypes
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from flowley_jax.errors import FlowleyError


def heat_map(values: np.ndarray, *, low: float, high: float, colours: str = "magma") -> str:
    """A PNG data URI of `values` (rows, columns), first row at the top.

    Values at or below `low` take the first colour of matplotlib's map `colours`, those at or above `high` the
    last; what is not a number counts as `low`.
    """
    scaled = (np.nan_to_num(values, nan=low) - low) / max(high - low, 1e-12)
    image = Image.fromarray(np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)).convert("P")
    image.putpalette(palette(colours).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return _data_uri("image/png", buffer.getvalue())


def palette(colours: str) -> np.ndarray:
    """The 256 colours of a matplotlib map, uint8 (256, 3)."""
    return matplotlib.colormaps[colours](np.arange(256), bytes=True)[:, :3]


def file_uri(path: Path) -> str:
    """The bytes of a media file as a data URI.

    Raises FlowleyError if the file is missing or cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FlowleyError(f"{path}: the report needs this video: {error.strerror or error}") from error
    return _data_uri(mimetypes.guess_type(path.name)[0] or "video/mp4", content)


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
