"""Reports: HTML files that need no network."""

from flowley_jax.report.clips import ReportClip
from flowley_jax.report.intervals import intervals_section
from flowley_jax.report.page import clips_section, settings_section, write_page, write_report
from flowley_jax.report.table import TableRow, bars_section, table_section

__all__ = [
    "ReportClip",
    "TableRow",
    "bars_section",
    "clips_section",
    "intervals_section",
    "settings_section",
    "table_section",
    "write_page",
    "write_report",
]
