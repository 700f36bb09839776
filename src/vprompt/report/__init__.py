"""Report: what a run found, as one self-contained HTML file."""

from vprompt.report.html import write_report

__all__ = ["write_report"]
