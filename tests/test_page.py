"""The page of a report, as its text and as a real browser shows it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import fuse
from sister_models import BF16, ROWS, WIDTH, Activated
from torch import nn

import fusepass
from fusepass.explaining.listing import Fold, folds
from fusepass.explaining.page import html
from fusepass.report import Miss, Report, Site

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


class Two(nn.Module):
    """Two sites, one behind the other, and a miss."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.gate = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.gelu(self.down(nn.functional.relu(self.up(x) * 0.5)))
        return h + torch.atan(self.gate(x))


@pytest.fixture(scope="module")
def report() -> Report:
    with torch.no_grad():
        found = fusepass.explain(Two(), torch.randn(4, 8))
    assert (len(found.sites), len(found.misses), len(found.graphs)) == (2, 1, 1)
    return found


class _Lines(HTMLParser):
    """The lines of the graphs: id -> (classes, text); and what is folded away."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.lines: dict[str, tuple[str, str]] = {}
        self.folded: dict[str, list[str]] = {}
        self._id = self._title = ""
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "details" and given.get("class") is None:
            self._open.append("")
        if tag == "li" and "id" in given:
            self._id = given["id"] or ""
            assert self._id not in self.lines, "two lines of one name"
            self.lines[self._id] = (given["class"] or "", "")
            if self._open:
                self.folded.setdefault(self._open[-1], []).append(self._id)

    def handle_endtag(self, tag: str) -> None:
        if tag == "li":
            self._id = ""
        if tag == "details" and self._open:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and not self._open[-1]:
            self._open[-1] = data
        elif self._id:
            kind, text = self.lines[self._id]
            self.lines[self._id] = (kind, text + data)


def test_every_node_of_a_site_is_marked_and_no_other(report: Report) -> None:
    lines = _Lines(html(report, "a model", {})).lines
    marked = {i.removeprefix("g0-before-") for i, (kind, _) in lines.items() if "site" in kind}
    expected = {node for site in report.sites for node in site.nodes}
    assert {m for m in marked if not m.startswith("g0-after")} == expected
    fused = [t for i, (kind, t) in lines.items() if i.startswith("g0-after") and "site" in kind]
    assert [re.sub(r"linear\w*: f32\[.*\] = (fusepass.linear)\(.*", r"\1", t) for t in fused] == [
        "1fusepass.linear",
        "2fusepass.linear",
    ]
    before, after = report.graphs[0]
    assert len(lines) == len(before.splitlines()) + len(after.splitlines())


def test_a_miss_carries_its_reason(report: Report) -> None:
    (miss,) = report.misses
    kind, text = _Lines(html(report, "a model", {})).lines[f"g0-before-{miss.gemm}"]
    assert kind == "left" and text.endswith(miss.reason.replace("`", ""))


def test_a_graph_that_was_left_is_shown_once() -> None:
    with torch.no_grad():
        left = fusepass.explain(nn.Linear(8, 8), torch.randn(4, 8))
    lines = _Lines(html(left, "a model", {})).lines
    assert len(lines) == len(left.graphs[0][0].splitlines())
    assert all(i.startswith("g0-before-") for i in lines)


def test_a_report_without_sites_or_graphs_has_a_page() -> None:
    page = html(Report(notes=("no graph",)), "nothing", {"torch": "2"})
    assert "No matrix product" in page and "<dt>torch</dt><dd>2</dd>" in page
    assert "<p>no graph</p>" in page


def _layer(dtype: str = "f32", size: int = 8) -> list[str]:
    lines = [f"mul_{i}: {dtype}[{size}] = aten.mul(add_{i}, {i}.5)" for i in range(24)]
    return [*lines, f"addmm_3: {dtype}[{size}] = aten.addmm(arg5_1, mul_23, arg6_1)"]


def _renamed(layer: list[str], number: int) -> list[str]:
    return [re.sub(r"\b([a-z]+)_\d+", rf"\1_{number}", line) for line in layer]


def test_layers_alike_are_shown_once() -> None:
    layers = [line for i in range(12) for line in _renamed(_layer(), i)]
    inputs = [f"arg{i}_1: f32[8]" for i in range(20)]
    lines = [*inputs, *layers, "return [addmm_3]"]
    assert folds(lines) == [
        Fold(0, 20, "20 inputs"),
        Fold(45, 320, "the same 25 nodes 11 times more"),
    ]
    assert folds([*inputs[:8], *layers[:25], "return [addmm_3]"]) == []


@pytest.mark.parametrize("other", [_layer("bf16"), _layer(size=9)])
def test_layers_that_differ_are_all_shown(other: list[str]) -> None:
    assert folds([*_layer(), *other]) == []
    again = folds([*_layer(), *_layer(), *other, *other, *_layer()])
    assert [f.title for f in again] == [f"the same {n} nodes once more" for n in (25, len(other))]


def test_a_few_lines_alike_are_not_worth_folding() -> None:
    assert folds(_layer()[20:] * 4) == [] != folds(_layer()[20:] * 6)


def test_stages_of_two_kinds_are_folded_each() -> None:
    lines = [*_layer() * 3, *_layer(size=9) * 2]
    assert [(f.start, f.stop) for f in folds(lines)] == [(25, 75), (100, 125)]


class Deep(nn.Module):
    """Twelve layers alike."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Two() for _ in range(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_deep_models_page_has_a_row_and_a_graph_of_one_layer() -> None:
    with torch.no_grad():
        deep = fusepass.explain(Deep(), torch.randn(4, 8))
    page = html(deep, "deep", {})
    assert page.count("<article") == 3 and "layers.0-11.up × 12" in page
    parsed = _Lines(page)
    titles = sorted(t for t in parsed.folded if t.startswith("the same"))
    assert len(titles) == 2 and all(t.endswith("nodes 11 times more") for t in titles)
    hidden = {i for ids in parsed.folded.values() for i in ids}
    shown = {i for i in parsed.lines if i not in hidden}
    for site in deep.sites:  # the first layer's are shown, all others' folded
        first = (site.module or "").startswith("layers.0.")
        assert all((f"g0-before-{n}" in shown) == first for n in site.nodes)


def _hostile() -> Report:
    evil = "</pre><script>document.title = 'planted'</script>"
    site = Site(evil, "float32", "1", "1", "1", evil, evil, evil, "addmm", ("addmm",), evil,
                follows=evil, kind=evil, flops=8)  # fmt: skip
    miss = Miss(evil, "addmm", evil, evil, gemm=evil, shape=evil, flops=8)
    graph = f"addmm: f32[1, 1] = aten.addmm(x, '{evil}')\nreturn [addmm]"
    return Report((site,), (miss,), ((graph, graph),), notes=(evil,))


def test_text_of_the_model_stays_text() -> None:
    page = html(_hostile(), "<b>bold</b>", {"<i>": "</i>"})
    assert "<script" not in page and "<b>bold" not in page and "<i>" not in page


# --- in a browser -------------------------------------------------------------------------------

_PROBE = """<script>addEventListener("load", () => {
  const color = (e) => getComputedStyle(e).backgroundColor;
  const all = (q) => [...document.querySelectorAll(q)];
  const facts = {
    title: document.title,
    resources: performance.getEntriesByType("resource").length,
    overflow: document.documentElement.scrollWidth - innerWidth,
    pieces: all(".all a").map((e) => [color(e), e.getBoundingClientRect().width]),
    bars: all(".card .bar span").map((e) => [color(e), e.getBoundingClientRect().width]),
    keys: all(".key").map(color),
    sites: all("li.site").map((e) => [e.querySelector(".badge").textContent, color(e)]),
    misses: all("li.left").map((e) => [color(e), e.querySelector(".note").offsetHeight]),
    plain: all("ol li:not(.site):not(.left)").map(color),
    dangling: all("a").filter((a) => !document.getElementById(a.hash.slice(1))).length,
    columns: new Set(all("figure").map((e) => e.getBoundingClientRect().top)).size,
  };
  document.body.innerHTML = "";
  document.body.appendChild(document.createElement("pre")).textContent = JSON.stringify(facts);
});</script></body>"""


def _in_browser(page: str, folder: Path, width: int) -> dict[str, Any]:
    file = folder / "page.html"
    file.write_text(page.replace("</body>", _PROBE), encoding="utf-8")
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={folder}/profile", f"--window-size={width},900", "--dump-dom",
        file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<pre>(\{.*\})</pre>", done.stdout)
    assert found, done.stderr
    facts: dict[str, Any] = json.loads(found[1].replace("&gt;", ">").replace("&amp;", "&"))
    return facts


needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


@needs_browser
@pytest.mark.parametrize(("width", "rows"), [(1400, 1), (500, 2)])
def test_in_a_browser(report: Report, tmp_path: Path, width: int, rows: int) -> None:
    facts = _in_browser(html(report, "a model", {"torch": "2"}), tmp_path, width)
    assert facts["title"] == "fusepass: a model"
    assert facts["resources"] == 0  # nothing is fetched
    assert facts["overflow"] <= 0 and facts["dangling"] == 0
    assert facts["columns"] == rows  # before and after side by side where there is room
    # Of 2·4·(8·16 + 16·8 + 8·8) FLOPs two fifths, two fifths and one fifth.
    (fused, wide), (again, alike), (left, narrow) = facts["pieces"]
    assert fused == again != left and facts["keys"] == [fused, left]
    assert wide == pytest.approx(alike, abs=2) and wide == pytest.approx(2 * narrow, abs=3)
    assert [color for color, _ in facts["bars"]] == [fused, fused, left]
    assert facts["bars"][2][1] == pytest.approx(facts["bars"][0][1] / 2, abs=1)
    assert sorted({badge for badge, _ in facts["sites"]}) == ["1", "2"]
    (site,) = {color for _, color in facts["sites"]}
    (miss, note_height), _ = facts["misses"]
    assert note_height > 0
    assert len({site, miss, *facts["plain"]}) == 3  # each told apart, the rest all alike


@needs_browser
def test_nothing_planted_runs_in_a_browser(tmp_path: Path) -> None:
    facts = _in_browser(html(_hostile(), "a model", {}), tmp_path, 900)
    assert facts["title"] == "fusepass: a model"


def test_a_launch_of_several_products_is_marked_as_theirs() -> None:
    """Not as the site before them, which has an epilogue; what takes the results is, too."""
    fused = fuse(Activated().to(BF16), hopper=True)
    with torch.no_grad():
        fused(torch.randn(2, ROWS // 2, WIDTH, dtype=BF16))
    graphs = ((fused.before[0], fused.after[0]),)
    page = _Lines(html(dataclasses.replace(fused.report, graphs=graphs), "attention", {}))
    kinds = {name: kind for name, (kind, _) in page.lines.items() if name.startswith("g0-after")}
    marked = {name.removeprefix("g0-after-"): kind for name, kind in kinds.items() if kind}
    assert marked["linear_default"] == "site one"
    assert marked["linears_default"] == "site gemm"
    items = [k for name, k in marked.items() if name.startswith("getitem")]
    assert items == ["site gemm"] * 2
