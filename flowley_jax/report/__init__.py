"""What a training run came to, as one HTML file that needs no network."""

from flowley_jax.report.clips import ReportClip
from flowley_jax.report.page import write_report

__all__ = ["ReportClip", "write_report"]
