"""Report: what fused, what did not, and why, in words a model author understands."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace

import torch
from torch._logging._internal import trace_structured

from .entries import Miss, Site
from .summary import Flops, fused, gemms, to_text

log = logging.getLogger("fusepass")


@dataclass(frozen=True)
class Report:
    """All sites and misses of the graphs seen: every GEMM of theirs is one or the other.

    Attributes:
        graphs: the text of each graph before and after the pass, where somebody kept it.
        notes: what else is worth knowing, such as that there was no graph, and why.
    """

    sites: tuple[Site, ...] = ()
    misses: tuple[Miss, ...] = ()
    graphs: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    @property
    def fused(self) -> tuple[Site, ...]:
        """The sites with an epilogue."""
        return fused(self.sites)

    @property
    def gemms(self) -> tuple[Site, ...]:
        """The sites without an epilogue."""
        return gemms(self.sites)

    def __str__(self) -> str:
        return to_text(self.sites, self.misses, self.notes)

    def to_json(self) -> str:
        """The sites and misses as a JSON object, with their FLOPs in ``flops``."""
        return json.dumps(
            {
                "sites": [asdict(s) for s in self.sites],
                "misses": [asdict(m) for m in self.misses],
                "flops": asdict(Flops.of(self.sites, self.misses)),
                "notes": self.notes,
            }
        )


@dataclass
class Collector:
    """The reports of every pass run while it was in force."""

    reports: list[Report] = field(default_factory=list)

    def report(self) -> Report:
        """All of them as one; each site and miss knows which it comes from."""
        numbered = list(enumerate(self.reports))
        return Report(
            tuple(replace(s, graph=i) for i, r in numbered for s in r.sites),
            tuple(replace(m, graph=i) for i, r in numbered for m in r.misses),
        )


# Of this thread's own compiles: another thread may be compiling another model.
_collectors: ContextVar[tuple[Collector, ...]] = ContextVar("fusepass_collectors", default=())


@contextmanager
def collect() -> Iterator[Collector]:
    """Gathers the reports of all pass runs that this thread makes inside the ``with`` block."""
    collector = Collector()
    token = _collectors.set((*_collectors.get(), collector))
    try:
        yield collector
    finally:
        _collectors.reset(token)


def publish(report: Report) -> None:
    """Counts, logs and traces the report of one pass run, and hands it to the collectors."""
    counters = torch._dynamo.utils.counters["fusepass"]
    counters["fused"] += len(report.fused)
    counters["gemms"] += len(report.gemms)
    counters["missed"] += len(report.misses)
    for site in report.sites:
        log.info("fused %s", site)
    for miss in report.misses:
        log.info("missed %s", miss)
    if report.sites or report.misses:
        trace_structured(
            "artifact",
            metadata_fn=lambda: {"name": "fusepass_report", "encoding": "json"},
            payload_fn=report.to_json,
        )
    for collector in _collectors.get():
        collector.reports.append(report)
