"""A Report as one self-contained HTML page: where the FLOPs go, what runs them, and the graphs.

No script, no font, no network: the page opens from a file, a mail or a build artefact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ..report import Entry, Miss, Report, Site
from ..report.summary import Flops, Row, amount, count_text, rows
from .listing import Mark, code, folds, html_of, parts
from .style import STYLE

_OP = "fusepass.linear"
_SEVERAL = "fusepass.linears"
_SMALL = 0.005  # rows below this share of the FLOPs are folded away, if there are several
_LONG = 150  # lines of a graph that are shown without being asked for

# What runs a product -> its class on the page and what a legend says of it.
_KINDS = {
    "one": "GEMM and epilogue in one kernel",
    "two": "GEMM, then its epilogue",
    "gemm": "GEMM without an epilogue, by fusepass",
    "left": "left to Inductor",
}


@dataclass(frozen=True)
class _Numbered:
    """A row with the badge that stands for it in the graphs."""

    badge: str
    row: Row

    @property
    def kind(self) -> str:
        return _kind(self.row.first)


def html(report: Report, title: str, facts: Mapping[str, str]) -> str:
    """The page as text.

    Args:
        report: as ``explain`` returns it, with its graphs.
        title: what was explained.
        facts: shown under the title, e.g. ``{"torch": "2.13.0"}``.
    """
    flops = Flops.of(report.sites, report.misses)
    count = count_text(report.sites, report.misses)
    numbered = list(_numbered(report))
    work = {"products": amount(flops.total)} if flops.total else {}
    details = "".join(
        f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in {**facts, **work}.items()
    )
    notes = "".join(f"<p>{code(note)}</p>" for note in report.notes)
    graphs = "".join(_graph(index, report, numbered) for index in range(len(report.graphs)))
    body = _picture(numbered, flops) + _cards(numbered, flops)
    body = body or "<p>No matrix product in the graphs.</p>"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>fusepass: {escape(title)}</title><style>{STYLE}</style></head>\n<body>"
        f'<header><h1>{escape(title)}</h1><p class="count">{count}</p>'
        f"<dl>{details}</dl>{notes}</header>\n"
        f"<main>{body}\n{graphs}</main></body></html>\n"
    )


def _numbered(report: Report) -> Iterator[_Numbered]:
    """The rows of the sites with an epilogue, of those without and of the misses."""
    sites = [*rows(report.fused), *rows(report.gemms)]
    yield from (_Numbered(str(number), row) for number, row in enumerate(sites, 1))
    yield from (_Numbered("✗", row) for row in rows(report.misses))


def _kind(entry: Entry) -> str:
    if isinstance(entry, Miss):
        return "left"
    if not entry.epilogue:
        return "gemm"
    return "one" if (entry.kernel or "").startswith("one kernel") else "two"


# --- where the FLOPs go -------------------------------------------------------------------------


def _picture(numbered: Sequence[_Numbered], flops: Flops) -> str:
    """One bar of all FLOPs, a piece a row, coloured by what runs it, and the legend."""
    if not flops.total:
        return ""
    pieces = "".join(
        f'<a class="{n.kind}" href="#{_id(n)}" style="flex-grow:{n.row.flops}" '
        f'title="{escape(f"{n.row.title}: {flops.share(n.row.flops)}")}"></a>'
        for n in numbered
        if n.row.flops
    )
    sums = {k: sum(n.row.flops or 0 for n in numbered if n.kind == k) for k in _KINDS}
    legend = "".join(
        f'<li><span class="key {k}"></span>{flops.share(sums[k])} {text}</li>'
        for k, text in _KINDS.items()
        if sums[k]
    )
    return f'<section class="picture"><div class="all">{pieces}</div><ul>{legend}</ul></section>'


def _cards(numbered: Sequence[_Numbered], flops: Flops) -> str:
    """A card a row; those of little work together under one line."""
    small = [n for n in numbered if _is_small(n.row, flops)]
    small = small if len(small) > 2 else []
    widest = max((n.row.flops or 0 for n in numbered), default=0)
    shown = "".join(_card(n, flops, widest) for n in numbered if n not in small)
    if not shown:
        return ""
    rest = "".join(_card(n, flops, widest) for n in small)
    title = f"{len(small)} rows of less than {_SMALL:.1%} of the FLOPs each"
    more = f'<details class="small"><summary>{title}</summary>{rest}</details>' if small else ""
    return f'<section class="cards">{shown}{more}</section>'


def _is_small(row: Row, flops: Flops) -> bool:
    return row.flops is not None and row.flops < _SMALL * flops.total


def _card(numbered: _Numbered, flops: Flops, widest: int) -> str:
    row, kind = numbered.row, numbered.kind
    entry = row.first
    share = flops.share(row.flops) or ""
    width = 100 * (row.flops or 0) / widest if widest else 0
    head = code(entry.title) if kind == "left" else f"<code>{escape(entry.title)}</code>"
    source = entry.source and f"<pre>{escape(entry.source)}</pre>"
    rest = (row.shape or "", *(d for d in entry.details if d != entry.source))
    lines = "".join(f"<p>{code(line)}</p>" for line in rest if line)
    return (
        f'<article class="card {kind}" id="{_id(numbered)}">'
        f'<div class="bar"><span style="width:{width:.2f}%"></span></div>'
        f'<h2><span class="badge">{numbered.badge}</span> '
        f'<a href="#{escape(_line_id(entry))}">{escape(row.title)}</a> <b>{share}</b></h2>'
        f"<p>{head}</p>{lines}{source or ''}</article>"
    )


def _id(numbered: _Numbered) -> str:
    return "row-" + escape(_line_id(numbered.row.first))


def _product(entry: Entry) -> str:
    """The name of the entry's product in its graph."""
    return entry.node if isinstance(entry, Site) else entry.gemm or entry.node


def _line_id(entry: Entry) -> str:
    return f"g{entry.graph}-before-{_product(entry)}"


# --- graphs -------------------------------------------------------------------------------------


def _graph(index: int, report: Report, numbered: Sequence[_Numbered]) -> str:
    before, after = report.graphs[index]
    marks: dict[str, Mark] = {}
    kept: dict[str, Mark] = {}
    calls: list[tuple[Site, Mark]] = []
    for one in numbered:
        for entry in (e for e in one.row.entries if e.graph == index):
            if isinstance(entry, Site):
                mark = Mark(f"site {one.kind}", one.badge)
                marks |= dict.fromkeys(entry.nodes, mark)
                calls.append((entry, mark))
            else:
                kept[_product(entry)] = Mark("left", one.badge, entry.reason)
    title = "Before" if calls else "Left as it is"
    panes = _pane(f"g{index}-before", title, before, marks | kept)
    if calls:
        panes += _pane(f"g{index}-after", "After", after, kept | _fused_lines(before, after, calls))
    count = f"{len(before.splitlines())} nodes before, {len(after.splitlines())} after"
    shown = "" if max(map(_shown, (before, after))) > _LONG else " open"
    return (
        f'<details class="graph"{shown}><summary>Graph {index + 1}: {count}</summary>'
        f'<div class="panes">{panes}</div></details>\n'
    )


def _shown(text: str) -> int:
    """How many lines of a graph are visible while nothing is unfolded."""
    lines = text.splitlines()
    return len(lines) - sum(fold.stop - fold.start - 1 for fold in folds(lines))


def _fused_lines(before: str, after: str, calls: Iterable[tuple[Site, Mark]]) -> dict[str, Mark]:
    """The new nodes of ``after``: each fused call is a site, and so is what takes its results."""
    old = {parts(line)[0] for line in before.splitlines()}
    pending = list(calls)
    marks: dict[str, Mark] = {}
    for line in after.splitlines():
        name, target, inputs = parts(line)
        if name in old or not target:
            continue
        if target.startswith(_OP):
            marks[name] = _take(pending, line)
        elif source := next((i for i in inputs if i in marks), None):
            marks[name] = marks[source]
    return marks


def _take(pending: list[tuple[Site, Mark]], line: str) -> Mark:
    """The mark of the first site left whose call stands in ``line``: of its epilogue, or that of
    several products in one launch, which are taken together."""
    together = f"{_SEVERAL}(" in line
    alike = [
        one
        for one in pending
        if (one[0].together > 1) == together and (together or repr(one[0].epilogue) in line)
    ]
    first = next(iter(alike), pending[0])
    for one in alike[: first[0].together] or [first]:
        pending.remove(one)
    return first[1]


def _pane(prefix: str, title: str, text: str, marks: Mapping[str, Mark]) -> str:
    return f"<figure><figcaption>{title}</figcaption>{html_of(prefix, text, marks)}</figure>"
