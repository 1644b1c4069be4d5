"""Report: what fused, what did not, and why, in words a model author understands."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Union

import torch
from torch._logging._internal import trace_structured
from torch.fx import Node

log = logging.getLogger("fusepass")


@dataclass(frozen=True)
class Site:
    """A GEMM of the model that runs as one op of fusepass.

    Attributes:
        epilogue: the stages as text, ``mul(0.5) clamp(-2.0, 2.0) gelu``; empty without any.
        dtype: of input, weight and output, ``bfloat16``.
        m, n, k: the GEMM's sizes as text; a dynamic size is a name such as ``s0``.
        kernel: what runs it.
        source: the user's own line, or None where torch recorded none.
        module: the path of the Linear in the model, or None outside a module.
        node: the GEMM's name in the graph.
        nodes: the names of the graph's nodes that it replaces or, in training, recomputes.
        why: why it is that kernel, where somebody asked.
        graph: the index of the site's graph in ``Report.graphs``.
        follows: what takes its result and is not part of it, and why, or None.
        kind: ``linear``, ``matmul`` where both matrices are computed, or ``gradient``.
        flops: 2·M·N·K at the sizes it was traced with, or None where they are unknown.
        backward: whether it is of the backward.
    """

    epilogue: str
    dtype: str
    m: str
    n: str
    k: str
    kernel: str | None
    source: str | None
    module: str | None
    node: str
    nodes: tuple[str, ...] = ()
    why: str | None = None
    graph: int = 0
    follows: str | None = None
    kind: str = "linear"
    flops: int | None = None
    backward: bool = False

    @property
    def shape(self) -> str:
        """``bfloat16 [M, K] x [K, N]``."""
        return f"{self.dtype} [{self.m}, {self.k}] x [{self.k}, {self.n}]"

    @property
    def title(self) -> str:
        """What runs, ``linear gelu``."""
        return f"{self.kind} {self.epilogue}".rstrip()

    @property
    def details(self) -> tuple[str, ...]:
        """What else there is to say, a line each: the kernel, what follows, the source."""
        kernel = self.kernel and self.kernel + (f", because {self.why}" if self.why else "")
        follows = self.follows and f"not taken: {self.follows}"
        return tuple(filter(None, (kernel, follows, self.source)))

    def __str__(self) -> str:
        return _text_of(self)


@dataclass(frozen=True)
class Miss:
    """A GEMM of the model that was left to Inductor.

    Attributes:
        reason: why, in a sentence.
        node: the name of the graph's node that stood in the way.
        source: the user's own line, or None where torch recorded none.
        module: the path of the Linear in the model, or None outside a module.
        graph: the index of the miss's graph in ``Report.graphs``.
        gemm: the GEMM's own name in the graph.
        shape: ``bfloat16 [M, K] x [K, N]``, or None for what is no plain product.
        flops: 2·M·N·K at the sizes it was traced with, or None where they are unknown.
        backward: whether it is of the backward.
    """

    reason: str
    node: str
    source: str | None
    module: str | None = None
    graph: int = 0
    gemm: str | None = None
    shape: str | None = None
    flops: int | None = None
    backward: bool = False

    @property
    def title(self) -> str:
        """The reason."""
        return f"gradient: {self.reason}" if self.backward else self.reason

    @property
    def details(self) -> tuple[str, ...]:
        """What else there is to say, a line each: the source."""
        return (self.source,) if self.source else ()

    def __str__(self) -> str:
        return _text_of(self)


Entry = Union[Site, Miss]


def _text_of(entry: Entry) -> str:
    lines = (entry.shape, *entry.details)
    head = f"{entry.module or entry.node}: {entry.title}"
    return "\n    ".join((head, *filter(None, lines)))


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
        return tuple(s for s in self.sites if s.epilogue)

    @property
    def gemms(self) -> tuple[Site, ...]:
        """The sites without an epilogue."""
        return tuple(s for s in self.sites if not s.epilogue)

    def __str__(self) -> str:
        from .explaining.summary import to_text

        return to_text(self)

    def to_json(self) -> str:
        """The sites and misses as a JSON object, with their FLOPs in ``flops``."""
        from .explaining.summary import Flops

        return json.dumps(
            {
                "sites": [asdict(s) for s in self.sites],
                "misses": [asdict(m) for m in self.misses],
                "flops": asdict(Flops.of(self)),
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


_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)\n\s*([^\n]*)')
_TORCH = os.path.dirname(torch.__file__) + os.sep


def source_of(*nodes: Node) -> str | None:
    """``model.py:12, in forward: x = x * self.scale``: the user's innermost line of the first node
    that has one; torch's own files are not the user's."""
    for node in nodes:
        frames = _FRAME.findall(node.meta.get("stack_trace") or "")
        users = [f for f in frames if not f[0].startswith(_TORCH)] or frames
        if users:
            path, line, function, code = users[-1]
            return f"{os.path.basename(path)}:{line}, in {function}: {code.strip()}"
    return None


# The compiled module as Dynamo names it. Behind a decorator of its forward it is `args[0]`.
_OUTERMOST = re.compile(r"""^L\[['"]args['"]\]\[0\]\.?|^L\[['"]\w+['"]\]\.?|^self\.?""")


def module_of(node: Node) -> str | None:
    """The module that ``node`` comes from, as attributes of the compiled one: ``layers.0.up``.

    For a node of the backward, the module whose forward it belongs to.
    """
    meta = node.meta
    stack: dict[str, Any] = meta.get("nn_module_stack") or meta.get("fwd_nn_module_stack") or {}
    if not stack:
        return None
    path = str(list(stack.values())[-1][0])
    path = _OUTERMOST.sub("", path)
    path = re.sub(r"_modules\[['\"]([^'\"]*)['\"]\]|\[['\"]?([^\]'\"]*)['\"]?\]", r".\1\2", path)
    return re.sub(r"\.+", ".", path).strip(".") or None
