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


def test_the_tables_are_of_the_results() -> None:
    """What fails here is mended by ``python benchmarks/summary.py README.md``."""
    results, text = summary.read(), README.read_text()
    assert all(table in text for table in summary.tables(results).values())
    assert all(f"commit {result['commit'][:7]}" in text for result in results.values())


def test_tables_are_replaced_in_place(tmp_path: Path) -> None:
    page, new = tmp_path / "page.md", summary.tables(summary.read())
    page.write_text("\n".join(f"before\n\n| {h} | a |\n|---|---|\n| b | 9.99 |\n" for h in new))
    summary.main([str(page)])
    assert page.read_text() == "\n".join(f"before\n\n{table}" for table in new.values())
    page.write_text("no table\n")
    with pytest.raises(SystemExit, match="has 0 tables"):
        summary.main([str(page)])


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert links and all((README.parent / link).exists() for link in links)


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
