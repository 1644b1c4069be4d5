"""The README's Python examples run, and print what the README shows."""

from __future__ import annotations

import contextlib
import io
import linecache
import re
from pathlib import Path

import pytest

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
