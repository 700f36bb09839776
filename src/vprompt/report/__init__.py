"""Report: what a run found, as one self-contained HTML file.

Read from the record alone: no model, no image and no tensor is opened here.
"""

from vprompt.report.html import write_report

__all__ = ["write_report"]
