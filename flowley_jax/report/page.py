"""Pages of a report: of a training, and of any sections."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np

from flowley_jax.common.files import write_text
from flowley_jax.common.trees import flatten_mapping
from flowley_jax.report.clips import ReportClip, clip_section
from flowley_jax.report.curves import Row, curves_section
from flowley_jax.report.masks import masks_section

# The page may show what it contains and must fetch nothing.
POLICY = (
    "default-src 'none'; img-src data:; media-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


def write_report(
    path: Path,
    *,
    title: str,
    figures: Mapping[str, tuple[str, str]],
    history: Sequence[Row],
    masks: np.ndarray | None,
    clips: Sequence[ReportClip],
    settings: Mapping[str, object],
    tables: Sequence[str] = (),
) -> None:
    """Write the report of a training; see `write_page`.

    Text is plain and is escaped here; `tables` are HTML.

    Args:
      path: file to write; its folder is created if needed.
      title: heading of the page.
      figures: value and explanation of each headline figure, by name, in the order of the page.
      history: rows of the training metrics, with `step` and any of `train/loss`, `train/velocity_loss`,
        `train/direction_loss`, `valid/loss`, `step_time` and `data_wait` (both in seconds).
      masks: PSCA's soft masks (N2, Ta, Tv) in [0, 1], or None for a model without PSCA.
      clips: clips to show, in the order of the page.
      settings: settings of the run; nested mappings get dotted names.
      tables: HTML sections to show after the headline figures.

    Raises:
      FlowleyError: a video is missing or cannot be read, or the page cannot be written.
    """
    sections = [_figures(figures), *tables, curves_section(history), clips_section("Clips", clips)]
    if masks is not None:
        sections.append(masks_section(masks))
    sections.append(settings_section(settings))
    write_page(path, title, sections)


def write_page(path: Path, title: str, sections: Sequence[str]) -> None:
    """Write one self-contained HTML file; an older one is replaced only when the new one is complete.

    Args:
      path: file to write; its folder is created if needed.
      title: heading of the page, in plain text.
      sections: HTML of the sections; empty ones are left out.

    Raises:
      FlowleyError: the page cannot be written.
    """
    write_text(path, _page(title, "\n".join(filter(None, sections))))


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n"
        f"<script>\n{_asset('page.js')}</script>\n</body>\n</html>\n"
    )


def _figures(figures: Mapping[str, tuple[str, str]]) -> str:
    cards = "".join(
        f"<div><dt>{escape(name)}</dt><dd><b>{escape(value)}</b>{escape(meaning)}</dd></div>"
        for name, (value, meaning) in figures.items()
    )
    return f'<dl class="figures">{cards}</dl>' if cards else ""


def clips_section(title: str, clips: Sequence[ReportClip]) -> str:
    """Return the HTML section of clips; it is empty without clips.

    Raises:
      FlowleyError: a video is missing or cannot be read.
    """
    articles = "\n".join(clip_section(clip) for clip in clips)
    return f"<section><h2>{escape(title)}</h2>\n{articles}\n</section>" if articles else ""


def settings_section(settings: Mapping[str, object]) -> str:
    """Return the HTML section of settings; nested mappings get dotted names."""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in flatten_mapping(settings)
    )
    return f"<section><h2>Settings</h2><table>{rows}</table></section>" if rows else ""


def _asset(name: str) -> str:
    return resources.files("flowley_jax.report").joinpath(name).read_text(encoding="utf-8")
