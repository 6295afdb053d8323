"""An HTML page of clips and their captions, to check the captions by eye and ear."""

import base64
import io
import os
import random
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from flowley_jax.common.files import write_text
from flowley_jax.data.clip_table import TableClip
from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import read_frames

_WIDTH = 320
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
article { display: flex; flex-wrap: wrap; gap: 1.5rem; padding: 1rem 0; border-top: 1px solid #ddd }
video { width: 320px; background: #000 } article div { flex: 1; min-width: 18rem } p { margin: 0 0 .5rem }
small { color: #666 } .none { color: #a00 }
"""


def write_audit(
    path: Path,
    clips: Sequence[TableClip],
    captions: Mapping[str, str],
    *,
    number: int,
    title: str,
    seed: int = 0,
) -> None:
    """Write a page with randomly drawn clips and their captions.

    Args:
      path: the HTML file. It links to the videos by relative paths.
      clips: the clips to draw from.
      captions: captions by clip id; the page marks clips without one.
      number: number of clips to draw; all if there are fewer.
      title: title of the page.
      seed: seed of the draw.

    Raises:
      FlowleyError: the page cannot be written.
    """
    drawn = random.Random(seed).sample(list(clips), min(number, len(clips)))
    articles = "".join(_article(clip, captions.get(clip.id), path.parent) for clip in drawn)
    write_text(
        path,
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><p>{len(drawn)} of {len(clips)} clips. The videos play only where this "
        f"page can reach their files.</p>{articles}</html>\n",
    )


def _article(clip: TableClip, caption: str | None, folder: Path) -> str:
    text = f"<p>{escape(caption)}</p>" if caption else "<p class='none'>no caption</p>"
    if clip.caption:
        text += f"<p><small>in the table: {escape(clip.caption)}</small></p>"
    address = escape(os.path.relpath(clip.video_path, folder), quote=True)
    return (
        f"<article><video controls preload='none' {_poster(clip)}src='{address}'></video>"
        f"<div>{text}<small>{escape(clip.id)}</small></div></article>"
    )


def _poster(clip: TableClip) -> str:
    """Return the HTML attribute with the clip's first frame, or "" if the clip cannot be read."""
    try:
        frame = read_frames(clip.video_path, fps=1.0, seconds=1.0)[0]
    except FlowleyError:
        return ""
    image = Image.fromarray(frame)
    image.thumbnail((_WIDTH, _WIDTH))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return f"poster='data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}' "
