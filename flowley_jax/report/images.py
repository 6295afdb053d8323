"""Arrays and files as data URIs, which make the page self-contained."""

import base64
import io
import mimetypes
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from flowley_jax.errors import FlowleyError


def heat_map(values: np.ndarray, *, low: float, high: float, colours: str = "magma") -> str:
    """Return a picture of an array as a PNG data URI.

    Args:
      values: (rows, columns), first row at the top.
      low: values up to this one get the first colour, and so does NaN.
      high: values from this one on get the last colour.
      colours: name of a matplotlib colormap.
    """
    scaled = (np.nan_to_num(values, nan=low) - low) / max(high - low, 1e-12)
    image = Image.fromarray(np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)).convert("P")
    image.putpalette(palette(colours).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return _data_uri("image/png", buffer.getvalue())


def palette(colours: str) -> np.ndarray:
    """Return the colours of a matplotlib colormap, uint8 (256, 3)."""
    return matplotlib.colormaps[colours](np.arange(256), bytes=True)[:, :3]


def file_uri(path: Path) -> str:
    """Return the bytes of a media file as a data URI.

    Raises:
      FlowleyError: the file is missing or cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FlowleyError(f"{path}: the report needs this video ({error.strerror or error})") from error
    return _data_uri(mimetypes.guess_type(path.name)[0] or "video/mp4", content)


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
