"""docs/recipes.md: every block of Python runs as it stands, in a process of its own."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from counting_compiler import install

from fusepass.__main__ import main

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
_LIBRARIES = ("transformers", "timm", "accelerate", "lightning")
# Each process has a file of its own: what several print may be mixed.
_TOLD = """
import os, torch
with open(f"fused.{os.environ.get('RANK', 0)}", "w") as file:
    file.write(str(torch._dynamo.utils.counters["fusepass"]["fused"]))
"""


def _recipes() -> list[tuple[str, str]]:
    """(title, code) of each block of Python."""
    found = []
    for section in PAGE.split("\n## ")[1:]:
        title = section.partition("\n")[0]
        found += [(title, code) for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL)]
    return found


RECIPES = _recipes()


def _run(command: list[str], folder: Path) -> str:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("title", "code"), RECIPES, ids=lambda v: v.splitlines()[0][:40])
def test_recipe(title: str, code: str, tmp_path: Path) -> None:
    for library in _LIBRARIES:
        if re.search(rf"^(import|from) {library}\b", code, re.MULTILINE):
            pytest.importorskip(library)
    (tmp_path / "train.py").write_text(code + _TOLD)
    command = [sys.executable, "train.py"]
    processes = 2 if title == "Many GPUs" else 1
    if processes > 1:
        command[1:1] = f"-m torch.distributed.run --standalone --nproc-per-node {processes}".split()
    printed = _run(command, tmp_path)
    fused = [int(path.read_text()) for path in tmp_path.glob("fused.*")]
    assert len(fused) == processes, printed
    assert all(fused) or 'backend="fusepass"' not in code


def test_the_kernels_of_the_serving_recipe_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a compiler that pretends: which kernels, and where they lie, is what is tested."""
    (code,) = (code for title, code in RECIPES if title.startswith("Serving"))
    (command,) = re.findall(r"^python -m fusepass (build .*)$", PAGE, re.MULTILINE)
    compiler = install(tmp_path, monkeypatch, None)
    monkeypatch.setattr(torch.version, "cuda", None)  # no binding: kernels are enough
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(code)
    assert main(shlex.split(command)) == 0
    assert compiler.calls >= 3  # the pointwise kernel, and more than one batch's GEMM
    assert f"kernels are in {tmp_path / 'cache'}" in capsys.readouterr().out


def test_each_recipe_has_its_line_in_the_list() -> None:
    titles = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    listed = re.findall(r"^- \[(.*)\]\(#(.*)\)$", PAGE, re.MULTILINE)
    assert [title for title, _ in listed] == titles and len(titles) >= 7
    for title, anchor in listed:
        assert anchor == re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-")
