"""The page of a report, as its text and as a real browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fusepass
from fusepass.page import html
from fusepass.report import Miss, Report, Site

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


class Two(nn.Module):
    """Two sites, one behind the other, and a miss."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.gate = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.gelu(self.down(nn.functional.relu(self.up(x) * 0.5)))
        return h + nn.functional.silu(self.gate(x))


@pytest.fixture(scope="module")
def report() -> Report:
    with torch.no_grad():
        found = fusepass.explain(Two(), torch.randn(4, 8))
    assert (len(found.sites), len(found.misses), len(found.graphs)) == (2, 1, 1)
    return found


class _Lines(HTMLParser):
    """The lines of the graphs: id -> (classes, text)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.lines: dict[str, tuple[str, str]] = {}
        self._id = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "li":
            given = dict(attrs)
            self._id = given["id"] or ""
            assert self._id not in self.lines, "two lines of one name"
            self.lines[self._id] = (given["class"] or "", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "li":
            self._id = ""

    def handle_data(self, data: str) -> None:
        if self._id:
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
    kind, text = _Lines(html(report, "a model", {})).lines[f"g0-before-{miss.node}"]
    assert kind == "miss" and text.endswith(miss.reason.replace("`", ""))


def test_a_report_without_sites_or_graphs_has_a_page() -> None:
    page = html(Report(), "nothing", {"torch": "2"})
    assert "No Linear followed by" in page and "<dt>torch</dt><dd>2</dd>" in page


def _hostile() -> Report:
    evil = "</pre><script>document.title = 'planted'</script>"
    site = Site(evil, "float32", "1", "1", "1", evil, evil, evil, "addmm", ("addmm",), evil)
    graph = f"addmm: f32[1, 1] = aten.addmm(x, '{evil}')\nreturn [addmm]"
    return Report((site,), (Miss(evil, "addmm", evil, evil),), ((graph, graph),))


def test_text_of_the_model_stays_text() -> None:
    page = html(_hostile(), "<b>bold</b>", {"<i>": "</i>"})
    assert "<script" not in page and "<b>" not in page and "<i>" not in page


# --- in a browser -------------------------------------------------------------------------------

_PROBE = """<script>addEventListener("load", () => {
  const color = (e) => getComputedStyle(e).backgroundColor;
  const all = (q) => [...document.querySelectorAll(q)];
  const facts = {
    title: document.title,
    resources: performance.getEntriesByType("resource").length,
    overflow: document.documentElement.scrollWidth - innerWidth,
    sites: all("li.site").map((e) => [e.querySelector(".badge").textContent, color(e)]),
    misses: all("li.miss").map((e) => [color(e), e.querySelector(".note").offsetHeight]),
    plain: all("li:not(.site):not(.miss)").map(color),
    cards: all(".card").map(color),
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
    colors: dict[str, set[str]] = {}
    for badge, color in facts["sites"]:
        colors.setdefault(badge, set()).add(color)
    assert sorted(colors) == ["1", "2"] and all(len(c) == 1 for c in colors.values())
    one, two = (c.pop() for c in colors.values())
    (miss, note_height), _ = facts["misses"]
    assert note_height > 0
    assert len({one, two, miss, *facts["plain"]}) == 4  # each told apart, the rest all alike
    assert facts["cards"] == [one, two, miss]


@needs_browser
def test_nothing_planted_runs_in_a_browser(tmp_path: Path) -> None:
    facts = _in_browser(html(_hostile(), "a model", {}), tmp_path, 900)
    assert facts["title"] == "fusepass: a model"
