"""A section with the intervals of several systems, each figure on a scale of its own."""

from collections.abc import Mapping
from html import escape

from flowley_jax.report.table import legend, style_of

# Low end, estimate and high end.
Ends = tuple[float, float, float]


def intervals_section(title: str, note: str, groups: Mapping[str, Mapping[str, Ends]]) -> str:
    """Return the HTML section of intervals; it is empty without groups.

    Args:
      title: heading of the section.
      note: a line of plain text below the heading.
      groups: intervals by series, by the name of the figure.
    """
    if not groups:
        return ""
    series = list(dict.fromkeys(name for values in groups.values() for name in values))
    body = "".join(
        f"<dt>{escape(group)}</dt><dd>{_lines(values, series)}</dd>" for group, values in groups.items()
    )
    return (
        f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>'
        f'{legend(series)}<dl class="bars intervals">{body}</dl></section>'
    )


def _lines(values: Mapping[str, Ends], series: list[str]) -> str:
    low, high = min(ends[0] for ends in values.values()), max(ends[2] for ends in values.values())
    scale = 100.0 / ((high - low) or 1.0)
    lines = ""
    for name, ends in values.items():
        left, middle, right = (scale * (end - low) for end in ends)
        hint = f"{name}: {ends[1]:.4g}, {ends[0]:.4g} to {ends[2]:.4g}"
        line = f'<i style="left:{left:.1f}%;width:{right - left:.1f}%"></i>'
        dot = f'<b style="left:{middle:.1f}%"></b>'
        style = style_of(series.index(name))
        lines += f'<span class="interval {style}" title="{escape(hint)}">{line}{dot}</span>'
    return f'{lines}<span class="ends"><span>{low:.3g}</span><span>{high:.3g}</span></span>'
