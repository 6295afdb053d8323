"""The report on a training run: one HTML file that needs no network."""

from flowley_jax.demo.report.clips import ReportClip
from flowley_jax.demo.report.page import write_report

__all__ = ["ReportClip", "write_report"]
