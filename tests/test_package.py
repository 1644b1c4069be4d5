"""The wheel and the sdist: what they hold, and that a bare environment runs from the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

import fusepass

ROOT = Path(__file__).parents[1]
hatchling = pytest.importorskip("hatchling.build", reason="needs hatchling to build the package")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(wheel, sdist), built as pip builds them."""
    folder = tmp_path_factory.mktemp("dist")
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        return (
            folder / hatchling.build_wheel(str(folder)),
            folder / hatchling.build_sdist(str(folder)),
        )
    finally:
        os.chdir(here)


def _sources() -> set[str]:
    files = (p for p in (ROOT / "fusepass").rglob("*") if p.is_file())
    return {str(p.relative_to(ROOT)) for p in files if "__pycache__" not in p.parts}


def test_the_wheel_holds_every_source_and_little_else(built: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(built[0]).namelist())
    info = f"fusepass-{fusepass.__version__}.dist-info/"
    assert {n for n in names if not n.startswith(info)} == _sources() | {"fusepass_autoload.py"}
    assert {"fusepass/kernels/gemm_sm90.cu", "fusepass/kernels/binding.cpp"} <= names
    assert "fusepass/py.typed" in names
    assert info + "licenses/LICENSE" in names and info + "entry_points.txt" in names


def test_the_sdist_can_be_tested(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "Makefile", "constraints.txt", "README.md", "LICENSE"}
    assert wanted | _sources() | {"tests/conftest.py", "docs/install.md"} <= names
    assert not any("__pycache__" in n or (n.startswith(".") and "/" in n) for n in names)


def test_the_sdist_builds_the_same_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(built[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    build = "import sys, hatchling.build as b; print(b.build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(tmp_path)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = zipfile.ZipFile(built[0]), zipfile.ZipFile(tmp_path / built[0].name)
    assert {n: first.read(n) for n in first.namelist()} == {
        n: second.read(n) for n in second.namelist()
    }


_PROGRAM = """
import fusepass, torch
from pathlib import Path
assert Path(fusepass.__file__).is_relative_to({environment!r}), fusepass.__file__
model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Hardtanh(-2, 2), torch.nn.GELU())
x = torch.randn(4, 32)
with torch.no_grad():
    torch.testing.assert_close(torch.compile(model, backend="fusepass")(x), model(x))
print("fused", torch._dynamo.utils.counters["fusepass"]["fused"])
"""
_UNCHANGED = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.GELU())
with torch.no_grad():
    torch.compile(model)(torch.randn(4, 32))
print("fused", torch._dynamo.utils.counters["fusepass"]["fused"])
"""


def test_the_wheel_in_an_empty_environment(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Nothing but the wheel is installed; torch and what it needs come by a path file."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    (packages,) = environment.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    target = ["--no-deps", "--no-index", "--target", str(packages), str(built[0])]
    done = subprocess.run(pip + target, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # A path file's own path files are not read, so an editable fusepass beside torch stays unseen.
    (packages / "torch.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "FUSEPASS")}
    for text, switch in ((_PROGRAM, {}), (_UNCHANGED, {"FUSEPASS": "1"})):
        program = tmp_path / "program.py"
        program.write_text(text.replace("{environment!r}", repr(str(environment))))
        done = subprocess.run(
            [str(python), str(program)],
            capture_output=True, text=True, timeout=300, env=env | switch, cwd="/",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout == "fused 1\n"
    command = [str(python), "-m", "fusepass", "doctor", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, cwd="/")
    assert done.returncode == 0 and 'torch.compile knows backend="fusepass"' in done.stdout
