"""docs/adding-a-stage.md, followed to the letter in a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusepass.kernels import toolchain

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding-a-stage.md").read_text()
BLOCKS = re.findall(r"```(?:python|cpp|text)\n(.*?)```", PAGE, re.DOTALL)
KERNELS = "fusepass/kernels/"
# Where the page's blocks go, in its order: before the first line that begins so.
PLACES = (
    ("fusepass/stages.py", "def _clamp_reference"),
    ("fusepass/stages.py", "    )\n}"),
    (KERNELS + "stage_codes.h", "enum Stage"),
    (KERNELS + "stages.cuh", "// For results that are rounded"),
    (KERNELS + "hybrid.cu", "    }\n  }\n#undef FUSEPASS_EACH"),
    (KERNELS + "gemm_sm90_stages.cuh", "}  // namespace fusepass"),
    (KERNELS + "gemm_sm90_epilogue.cuh", "constexpr Name<GeluTanh>"),
    (KERNELS + "gemm_sm90_f32_stages.cuh", "template <class... kStages>\nstruct Stages"),
    ("tests/test_match_spellings.py", '    "gelu_tanh gelu":'),
)
_COMPILE = """
from fusepass.kernels import plan, plan_f32, plan_tf32
from fusepass.kernels.build import build_cubin
structure = "mul silu"
build_cubin("gemm_sm90.cu", plan.defines(plan.CONFIGS[0], structure, True, False, True), "90a")
split = plan_f32.TILES[0].config(1)
build_cubin("gemm_sm90_f32.cu", plan_f32.defines(structure, split, False), "90a")
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy")
    unwanted = shutil.ignore_patterns("__pycache__")
    for folder in ("fusepass", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=unwanted)
    for name in ("pyproject.toml", "fusepass_autoload.py"):
        shutil.copy(ROOT / name, copy)
    for (name, place), block in zip(PLACES, BLOCKS, strict=True):
        _insert(copy / name, place, block)
    codes = copy / KERNELS / "stage_codes.h"
    old = next(line for line in codes.read_text().splitlines() if line.endswith("kGeluTanh = 5 };"))
    codes.write_text(codes.read_text().replace(old + "\n", ""))
    (name,) = re.findall(r"`(constexpr Silu silu\{\};)`", PAGE)
    full = copy / KERNELS / "gemm_sm90_f32_stages.cuh"
    _insert(full, "constexpr GeluTanh gelu_tanh", name + "\n")
    return copy


def _insert(file: Path, place: str, block: str) -> None:
    text = file.read_text()
    assert text.count(place) == 1, (file.name, place)
    file.write_text(text.replace(place, block + place))


def _run(tree: Path, *arguments: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_page_is_enough_on_the_cpu(tree: Path) -> None:
    files = ("test_stages.py", "test_build.py", "test_match_spellings.py")
    chosen = "silu or table_agree or case_for_every_stage"
    pytest_ = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen)
    out = _run(tree, *pytest_, *(f"tests/{f}" for f in files))
    # Formula, operator, two functions, the codes, the case, the spelling.
    assert re.search(r"\b7 passed", out), out


@pytest.mark.skipif(toolchain.find_nvcc() is None, reason="no nvcc")
def test_the_page_is_enough_for_nvcc(tree: Path) -> None:
    _run(tree, "-c", _COMPILE)
    hybrid, target = tree / KERNELS / "hybrid.cu", tree / "hybrid.cubin"
    flags = ["-std=c++17", "-cubin", "-gencode=arch=compute_90a,code=sm_90a"]
    toolchain.run([str(toolchain.find_nvcc()), *flags, str(hybrid), "-o", str(target)])
