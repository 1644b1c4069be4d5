"""What a compile says of itself: every matrix product of the graphs, fused or not, and why."""

from .entries import Entry, Miss, Site
from .origin import module_of, source_of
from .report import Collector, Report, collect, log, publish
from .summary import Flops

__all__ = [
    "Collector", "Entry", "Flops", "Miss", "Report", "Site",
    "collect", "log", "module_of", "publish", "source_of",
]  # fmt: skip
