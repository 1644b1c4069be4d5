"""The README's Python examples run and print what it shows; its tables are of the results."""

from __future__ import annotations

import contextlib
import io
import linecache
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import summary

from fusepass.__main__ import main

README = Path(__file__).parents[1] / "README.md"
# A page with tables of figures -> the results that they are made of.
PAGES = {
    "README.md": summary.MODELS,
    "docs/performance.md": (
        *(*summary.MODELS, *summary.KERNELS, "coverage"),
        *(file for file, _, _ in summary.COLUMNS),
    ),
    "docs/numerics.md": ("accuracy",),
}
for name, (page, *_) in summary.LATER.items():
    if name in summary.read():
        PAGES[page] = (*PAGES[page], name)
BLOCKS = re.findall(r"```python\n(.*?)```(?:\n```\n(.*?)```)?", README.read_text(), re.DOTALL)


@pytest.mark.parametrize(("code", "output"), BLOCKS, ids=lambda v: v.splitlines()[-1] if v else "")
def test_example(code: str, output: str) -> None:
    # The lines' text must be found for the report to quote them, as it is for a file.
    linecache.cache["README.md"] = (len(code), None, code.splitlines(keepends=True), "README.md")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    if output:
        assert printed.getvalue().strip() == output.strip()


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 2 and any(output for _, output in BLOCKS)


def test_it_is_short() -> None:
    assert README.read_text().splitlines().index("## Reference") <= 100


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_are_of_the_results(page: str) -> None:
    """What fails here is mended by ``python benchmarks/summary.py --write``."""
    text = (README.parent / page).read_text()
    new = summary.tables(summary.read())[page]
    assert summary.replaced(text, new, page) == text


@pytest.mark.parametrize("page", PAGES)
def test_the_commit_of_each_result_is_named(page: str) -> None:
    """Of each row, which may be of another than its file; the README shows some of the rows."""
    results, text = summary.read(), (README.parent / page).read_text()
    for name in PAGES[page]:
        head = results[name]["commit"]
        commits = {row.get("commit", head)[:7] for row in results[name]["rows"]}
        named = {commit for commit in commits if commit in text}
        assert named if page == "README.md" else named == commits, name


def test_the_architectures_are_counted() -> None:
    rows = summary.read()["coverage"]["rows"]
    assert f"{sum('failed' not in row for row in rows)} architectures]" in README.read_text()


def test_make_bench_measures_every_table_and_draws_every_picture() -> None:
    """And then writes them into the pages."""
    made = (README.parent / "Makefile").read_text().partition("\nbench:")[2]
    names = {f"{name}.json" for page in PAGES.values() for name in page}
    for page in (*PAGES, "docs/recipes.md"):
        pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (README.parent / page).read_text())
        names |= {Path(picture).name for picture in pictures}
    assert len(names) > 8
    assert [name for name in sorted(names) if f"$(RESULTS)/{name}" not in made] == []
    assert made.index("summary.py --write") > max(made.index(f"$(RESULTS)/{n}") for n in names)


def test_a_page_without_the_table_is_refused() -> None:
    assert summary.replaced("| a, b |\n|---|\n| c |\nd\n", {"a": "| e |\n"}, "page") == "| e |\nd\n"
    for text in ("no table\n", "| a |\n|---|\n\n| a |\n|---|\n"):
        with pytest.raises(SystemExit, match=r"page has [02] tables"):
            summary.replaced(text, {"a": "| e |\n"}, "page")


@pytest.mark.parametrize("pages", ["*.md", "docs/*.md", "benchmarks/*.md"])
def test_links_lead_somewhere(pages: str) -> None:
    for file in README.parent.glob(pages):
        text = re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, part = link.partition("#")
            if path.startswith("https:"):
                continue
            target = file.parent / path if path else file
            assert target.exists(), f"{file.name}: {link}"
            assert not part or part in _anchors(target.read_text()), f"{file.name}: {link}"


def _anchors(text: str) -> set[str]:
    """What the headings of a page are called in links."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


def test_the_command_lines_page_shows_what_explain_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (README.parent / "docs" / "cli.md").read_text()
    (model,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shown = re.search(r"\$ python -m fusepass explain mlp\.py [^\n]*\n(.*?)wrote", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("mlp.py").write_text(model)
    assert main(["explain", "mlp.py", "--device", "cpu"]) == 0
    assert shown is not None and capsys.readouterr().out == shown[1]
