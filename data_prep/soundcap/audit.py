"""A page of clips with their captions, to look and listen whether they fit."""

import base64
import io
import os
import random
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from flowley_jax.data.clip_table import Clip
from flowley_jax.errors import FlowleyError
from flowley_jax.media.read import read_frames
from flowley_jax.whole_files import write_text

_WIDTH = 320
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
article { display: flex; flex-wrap: wrap; gap: 1.5rem; padding: 1rem 0; border-top: 1px solid #ddd }
video { width: 320px; background: #000 } article div { flex: 1; min-width: 18rem } p { margin: 0 0 .5rem }
small { color: #666 } .none { color: #a00 }
"""


def write_audit(
    path: Path, clips: Sequence[Clip], captions: Mapping[str, str], *, number: int, title: str, seed: int = 0
) -> None:
    """Writes a page with some clips, drawn at random but the same for one seed.

    Args:
      captions: by id; a clip without one is shown as such.
      number: of clips.

    Raises:
      FlowleyError: the disk refuses.
    """
    chosen = random.Random(seed).sample(list(clips), min(number, len(clips)))
    rows = "".join(_row(clip, captions.get(clip.id), path.parent) for clip in chosen)
    write_text(
        path,
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><p>{len(chosen)} of {len(clips)} clips. The videos play where this page is "
        f"opened beside them.</p>{rows}</html>\n",
    )


def _row(clip: Clip, caption: str | None, folder: Path) -> str:
    said = f"<p>{escape(caption)}</p>" if caption else "<p class='none'>no caption</p>"
    table = f"<p><small>in the table: {escape(clip.caption)}</small></p>" if clip.caption else ""
    address = escape(os.path.relpath(clip.video_path, folder), quote=True)
    return (
        f"<article><video controls preload='none' {_poster(clip)}src='{address}'></video>"
        f"<div>{said}{table}<small>{escape(clip.id)}</small></div></article>"
    )


def _poster(clip: Clip) -> str:
    try:
        frame = read_frames(clip.video_path, fps=1.0, seconds=1.0)[0]
    except FlowleyError:
        # A page of what there is: the row still says which clip it is.
        return ""
    image = Image.fromarray(frame)
    image.thumbnail((_WIDTH, _WIDTH))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return f"poster='data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}' "
