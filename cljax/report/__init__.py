"""Reports: one HTML page about runs, with tables for papers and figures beside it.

    folders -> found (run, unfinished, sweep, nothing) -> parts (HTML, pictures) -> files

``report`` writes them; the command is ``cljax report``.
"""

from cljax.report.folders import ReportFolder, open_folders
from cljax.report.page import Made, report

__all__ = ["ReportFolder", "Made", "open_folders", "report"]
