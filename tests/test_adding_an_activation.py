"""docs/adding-an-activation.md, followed to the letter in a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusepass.kernels.build import toolchain

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding-an-activation.md").read_text()
ROW, FUNCTION = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
_COMPILE = """
from fusepass.ir import DType, Epilogue
from fusepass.ir.emit import emit
from fusepass.kernels import pointwise
from fusepass.kernels.plan import f32, sm90, tf32
from fusepass.kernels.build.build import build_cubin
epilogue = Epilogue.parse("mul(0.5) gaussian")
short, full = emit(epilogue, DType.BF16), emit(epilogue, DType.F32)
assert "ex2" not in short and "exp2_approx" in short and "exp(-(" in full
build_cubin("sm90/gemm_sm90.cu", sm90.defines(sm90.CONFIGS[0], True, False, True), "90a", short)
split = f32.TILES[0].config(1)
build_cubin("sm90_f32/gemm_sm90_f32.cu", f32.defines(split, False), "90a", full)
tile = tf32.TILES[0].text
build_cubin("sm90/gemm_sm90_tf32.cu", tf32.defines(tile, False), "90a", full)
for dtype in (DType.BF16, DType.F16, DType.F32, DType.F64):
    pointwise.build(epilogue, dtype, False, 0, "80")
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy")
    unwanted = shutil.ignore_patterns("__pycache__")
    for folder in ("fusepass", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=unwanted)
    for name in ("pyproject.toml", "fusepass_autoload.py"):
        shutil.copy(ROOT / name, copy)
    macros = copy / "fusepass" / "ir" / "macros.py"
    text, start = macros.read_text(), "_PIECEWISE = (\n"
    assert text.count(start) == 1
    macros.write_text(text.replace(start, FUNCTION + start + ROW))
    return copy


def _run(tree: Path, *arguments: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_page_is_enough_on_the_cpu(tree: Path) -> None:
    pytest_ = ("-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "-k", "gaussian")
    out = _run(tree, *pytest_, "tests/ir")
    # Texts, fast and exact, lowering, recognition.
    found = re.search(r"\b(\d+) passed, \d+ deselected", out)
    assert found is not None and int(found[1]) >= 9, out


@pytest.mark.skipif(toolchain.find_nvcc() is None, reason="no nvcc")
def test_the_page_is_enough_for_nvcc(tree: Path) -> None:
    _run(tree, "-c", _COMPILE)
