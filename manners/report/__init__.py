"""The page about a run, and its facts as JSON."""

from manners.report.checks import Standing, checks, rivals, standing
from manners.report.figures import panels
from manners.report.page import ReportPaths, build, render, to_json
from manners.report.words import duration, number, size, with_interval

__all__ = [
    "ReportPaths",
    "Standing",
    "build",
    "checks",
    "duration",
    "number",
    "panels",
    "render",
    "rivals",
    "size",
    "standing",
    "to_json",
    "with_interval",
]
