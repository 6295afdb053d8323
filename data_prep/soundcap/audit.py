"""An HTML page of clips and their captions, to check the captions by eye and ear."""

import contextlib
import functools
import os
import random
import urllib.parse
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from data_prep.rejection import Rejection
from data_prep.soundcap.clip_view import ClipView, ViewConfig, load_view
from data_prep.storage import is_remote
from data_prep.worker_pool import Worker
from flowley_jax.common.files import write_text
from flowley_jax.data.clip_table import TableClip

# One frame, as wide as the page shows it.
_POSTER = ViewConfig(seconds=1.0, fps=1.0, size=320)
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
    time_limit: float = 120.0,
) -> None:
    """Write a page with randomly drawn clips and their captions.

    Args:
      path: the HTML file. It links to the videos by relative paths.
      clips: the clips to draw from.
      captions: captions by clip id; the page marks clips without one.
      number: number of clips to draw; all if there are fewer.
      title: title of the page.
      seed: seed of the draw.
      time_limit: time limit for reading one clip, in seconds; a clip that needs more has no picture.

    Raises:
      FlowleyError: the page cannot be written.
    """
    drawn = random.Random(seed).sample(list(clips), min(number, len(clips)))
    # In a process of its own: clips that crash or block a decoder are drawn too.
    with contextlib.closing(Worker(functools.partial(load_view, _POSTER), time_limit)) as read:
        articles = "".join(_article(clip, captions.get(clip.id), path.parent, read) for clip in drawn)
    write_text(
        path,
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><p>{len(drawn)} of {len(clips)} clips. The videos play only where this "
        f"page can reach their files.</p>{articles}</html>\n",
    )


def _article(clip: TableClip, caption: str | None, folder: Path, read: Worker) -> str:
    text = f"<p>{escape(caption)}</p>" if caption else "<p class='none'>no caption</p>"
    if clip.caption:
        text += f"<p><small>in the table: {escape(clip.caption)}</small></p>"
    poster = _poster(read(clip.source))
    return (
        f"<article><video controls preload='none' {poster}{_source(clip, folder)}></video>"
        f"<div>{text}<small>{escape(clip.id)}</small></div></article>"
    )


def _source(clip: TableClip, folder: Path) -> str:
    """Return the HTML attribute with the clip's address; "" for a remote clip, which no browser can read."""
    if is_remote(clip.source):
        return ""
    # As bytes: names may be no UTF-8.
    address = urllib.parse.quote(os.fsencode(os.path.relpath(clip.source, folder)))
    return f"src='{escape(address, quote=True)}'"


def _poster(view: ClipView | Rejection) -> str:
    """Return the HTML attribute with the clip's first frame, or "" if the clip cannot be read."""
    if isinstance(view, Rejection):
        return ""
    return f"poster='data:image/jpeg;base64,{view.frames_as_jpeg()[0]}' "
