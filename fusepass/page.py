"""A Report as one self-contained HTML page: sites, misses, and the graphs before and after.

No script, no font, no network: the page opens from a file, a mail or a build artefact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

from .report import Miss, Report, Site

_NODE = re.compile(r"(\w+)(?:: [^=]*)? = ([\w.]+)\((.*)\)$", re.DOTALL)
_TEXT = re.compile(r"'[^']*'")  # a string argument: its words are no nodes
_FUSED = "fusepass.linear"


def html(report: Report, title: str, facts: Mapping[str, str]) -> str:
    """The page as text.

    Args:
        report: as ``explain`` returns it, with its graphs.
        title: what was explained.
        facts: shown under the title, e.g. ``{"torch": "2.13.0"}``.
    """
    details = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    numbered = list(enumerate(report.sites, 1))
    cards = [_site_card(number, site) for number, site in numbered]
    cards += [_miss_card(number, miss) for number, miss in enumerate(report.misses, 1)]
    graphs = [_graph(index, report) for index in range(len(report.graphs))]
    count = f"{len(report.sites)} fused, {len(report.misses)} missed"
    nothing = "<p>No Linear followed by a scale, clamp or GELU.</p>"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>fusepass: {escape(title)}</title><style>{_STYLE}</style></head>\n<body>"
        f'<header><h1>{escape(title)}</h1><p class="count">{count}</p><dl>{details}</dl></header>\n'
        f'<main><section class="cards">{"".join(cards) or nothing}</section>\n'
        f"{''.join(graphs)}</main></body></html>\n"
    )


def _site_card(number: int, site: Site) -> str:
    shape = f"{site.dtype} [{site.m}, {site.k}] × [{site.k}, {site.n}]"
    kernel = (site.kernel or "") + (f", because {site.why}" if site.why else "")
    link = f"#g{site.graph}-before-{site.node}"
    lines = [f"<code>{escape(site.epilogue)}</code>", escape(shape), escape(kernel)]
    return _card(f"site {_hue(number)}", link, f"{number}", site.module or site.node, lines, site)


def _miss_card(number: int, miss: Miss) -> str:
    link = f"#g{miss.graph}-before-{miss.node}"
    return _card("miss", link, "✗", miss.module or miss.node, [_code(miss.reason)], miss)


def _card(
    kind: str, link: str, badge: str, name: str, lines: Iterable[str], entry: Site | Miss
) -> str:
    body = "".join(f"<p>{line}</p>" for line in lines if line)
    source = f"<pre>{escape(entry.source)}</pre>" if entry.source else ""
    return (
        f'<article class="card {kind}"><h2><span class="badge">{badge}</span> '
        f'<a href="{escape(link)}">{escape(name)}</a></h2>{body}{source}</article>'
    )


def _code(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


# --- graphs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mark:
    """What a line of a graph is: part of a site, or a miss with its reason."""

    kind: str
    badge: str
    note: str = ""


def _graph(index: int, report: Report) -> str:
    before, after = report.graphs[index]
    sites = [(n, s) for n, s in enumerate(report.sites, 1) if s.graph == index]
    misses = [m for m in report.misses if m.graph == index]
    marks = {node: _site_mark(n) for n, site in sites for node in site.nodes}
    marks |= {m.node: _Mark("miss", "✗", m.reason) for m in misses}
    kept = {n: m for n, m in marks.items() if m.kind == "miss"}
    panes = (
        _pane(f"g{index}-before", "Before", before, marks)
        + _pane(f"g{index}-after", "After", after, kept | _fused_lines(before, after, sites))
    )  # fmt: skip
    title = f"<h2>Graph {index + 1}</h2>"
    return f'<section class="graph">{title}<div class="panes">{panes}</div></section>\n'


def _site_mark(number: int) -> _Mark:
    return _Mark(f"site {_hue(number)}", str(number))


def _fused_lines(before: str, after: str, sites: Iterable[tuple[int, Site]]) -> dict[str, _Mark]:
    """The new nodes of ``after``: the n-th fused call, and what takes its results, is site n."""
    old = {_parts(line)[0] for line in before.splitlines()}
    numbers = iter(n for n, _ in sites)
    marks: dict[str, _Mark] = {}
    for line in after.splitlines():
        name, target, inputs = _parts(line)
        if name in old or not target:
            continue
        if target.startswith(_FUSED):
            marks[name] = _site_mark(next(numbers))
        elif source := next((i for i in inputs if i in marks), None):
            marks[name] = marks[source]
    return marks


def _parts(line: str) -> tuple[str, str, list[str]]:
    """A line's node, operator and the names among its arguments."""
    found = _NODE.match(line)
    if found is None:
        return line.split(":")[0].split(" ")[0], "", []
    name, target, arguments = found.groups()
    return name, target, re.findall(r"[A-Za-z_]\w*", _TEXT.sub("", arguments))


def _pane(prefix: str, title: str, text: str, marks: Mapping[str, _Mark]) -> str:
    lines = text.splitlines()
    rows = "".join(_row(prefix, line, marks) for line in lines)
    return f"<figure><figcaption>{title}: {len(lines)} nodes</figcaption><ol>{rows}</ol></figure>"


def _row(prefix: str, line: str, marks: Mapping[str, _Mark]) -> str:
    name = _parts(line)[0]
    mark = marks.get(name, _Mark("", ""))
    note = f'<span class="note">{_code(mark.note)}</span>' if mark.note else ""
    return (
        f'<li id="{escape(f"{prefix}-{name}")}" class="{mark.kind}">'
        f'<span class="badge">{mark.badge}</span><code>{escape(line)}</code>{note}</li>'
    )


def _hue(number: int) -> str:
    return f"hue{(number - 1) % len(_HUES)}"


# Told apart by hue and, for those who see none, by the number beside each line.
_HUES = (210, 130, 40, 280, 175, 330, 85, 0)
_STYLE = (
    """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #8884; --light: 88%; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16191d; --light: 24%; }
}
body { margin: 1.5rem auto; padding: 0 1rem; max-width: 110rem; color: var(--ink);
  background: var(--paper); font: 15px/1.45 system-ui, sans-serif; }
h1, h2 { margin: 0; font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1rem; }
.count { margin: .2rem 0; font-size: 1.1rem; }
dl { display: flex; flex-wrap: wrap; gap: 0 .5rem; margin: 0; }
dt { font-weight: 600; } dd { margin: 0 1rem 0 0; }
code, pre { font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.cards { display: grid; gap: .75rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); }
.card { padding: .6rem .8rem; border-radius: .4rem; border-left: .4rem solid; }
.card p, .card pre { margin: .25rem 0 0; } a { color: inherit; }
.badge { display: inline-block; min-width: 1.6em; text-align: center; font-weight: 700; }
.panes { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(34rem, 100%), 1fr)); }
.graph { margin-top: 1.5rem; } figure { margin: 0; } figcaption { font-weight: 600; }
ol { list-style: none; margin: .3rem 0; padding: .3rem 0; border: 1px solid var(--faint);
  border-radius: .4rem; }
li { display: flex; flex-wrap: wrap; padding: 0 .4rem; } li code { flex: 1; }
li:target { outline: 2px solid; }
.note { flex-basis: 100%; padding-left: 1.9rem; font-style: italic; }
.site { background: hsl(var(--hue) 70% var(--light)); border-color: hsl(var(--hue) 60% 45%); }
.miss { background: hsl(0 0% var(--light)); border: 1px dashed; }
.card.miss { border-left: .4rem dashed; }
"""
    + "\n".join(f".hue{i} {{ --hue: {hue}; }}" for i, hue in enumerate(_HUES))
    + "\n"
)
