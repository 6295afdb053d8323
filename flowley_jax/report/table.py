"""Sections with a table of figures, and with bars of one figure by class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row of a table, in plain text.

    Attributes:
      name: its heading.
      cells: one text per column.
      hints: text that a cell shows when it is pointed at, per column; empty for none.
    """

    name: str
    cells: Sequence[str]
    hints: Sequence[str] = ()


def table_section(
    title: str, columns: Sequence[str], rows: Sequence[TableRow], *, notes: Sequence[str] = ()
) -> str:
    """Return the HTML section of a table; it is empty without rows.

    Args:
      title: heading of the section.
      columns: headings of the columns.
      rows: the rows.
      notes: lines of plain text below the table.
    """
    if not rows:
        return ""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(_row(row) for row in rows)
    below = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return (
        f'<section><h2>{escape(title)}</h2><div class="wide"><table class="figures-table">'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>{below}</section>"
    )


def bars_section(
    title: str, note: str, groups: Mapping[str, Mapping[str, float]], *, most: float = 1.0
) -> str:
    """Return the HTML section of bars; it is empty without groups.

    Args:
      title: heading of the section.
      note: a line of plain text below the heading.
      groups: values by series, by the name of the group.
      most: value of a full bar; larger ones are cut.
    """
    if not groups:
        return ""
    series = list(dict.fromkeys(name for values in groups.values() for name in values))
    body = "".join(
        f"<dt>{escape(group)}</dt><dd>"
        + "".join(_bar(value, most, style_of(series.index(name))) for name, value in values.items())
        + "</dd>"
        for group, values in groups.items()
    )
    return (
        f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>'
        f'{legend(series)}<dl class="bars">{body}</dl></section>'
    )


def legend(series: Sequence[str]) -> str:
    """Return the HTML legend of series, whose names are plain text. From the third on, all share a colour."""
    keys = "".join(
        f'<span class="key {style_of(index)}">{escape(name)}</span>' for index, name in enumerate(series)
    )
    return f'<div class="legend">{keys}</div>'


def _row(row: TableRow) -> str:
    hints = row.hints or [""] * len(row.cells)
    cells = "".join(
        f'<td title="{escape(hint)}">{escape(cell)}</td>' if hint else f"<td>{escape(cell)}</td>"
        for cell, hint in zip(row.cells, hints, strict=True)
    )
    return f"<tr><th>{escape(row.name)}</th>{cells}</tr>"


def _bar(value: float, most: float, style: str) -> str:
    width = 100.0 * min(max(value / most, 0.0), 1.0)
    return f'<span class="bar {style}"><i style="width:{width:.1f}%"></i>{value:.2f}</span>'


def style_of(index: int) -> str:
    """Return the CSS class of a series; there are three colours."""
    return ("first", "second", "third")[min(index, 2)]
