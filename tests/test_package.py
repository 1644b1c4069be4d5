"""The wheel and the sdist: what they hold, and that a bare environment runs from the wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
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
    assert {
        "fusepass/kernels/csrc/sm90/gemm_sm90.cu",
        "fusepass/kernels/csrc/binding/binding.cpp",
    } <= names
    assert "fusepass/py.typed" in names
    assert info + "licenses/LICENSE" in names and info + "entry_points.txt" in names


def _metadata(wheel: Path) -> Message:
    name = f"fusepass-{fusepass.__version__}.dist-info/METADATA"
    return message_from_bytes(zipfile.ZipFile(wheel).read(name))


def test_the_description_leads_to_the_repository(built: tuple[Path, Path]) -> None:
    """A package's page has no folders: a link of the README is a URL in it, or one of its parts."""
    described = _metadata(built[0]).get_payload(decode=True).decode()
    readme = (ROOT / "README.md").read_text()
    given, there = (re.findall(r"\]\(([^)]+)\)", text) for text in (readme, described))
    assert len(given) == len(there) > 5
    for link, url in zip(given, there, strict=True):
        assert url.startswith(("https://", "#")), url
        assert url == link or url.endswith(f"/v{fusepass.__version__}/{link}")
    assert re.sub(r"\]\([^)]+\)", "", described) == re.sub(r"\]\([^)]+\)", "", readme)


def test_the_metadata_says_who_and_where(built: tuple[Path, Path]) -> None:
    metadata = _metadata(built[0])
    assert metadata["Author"] == "The fusepass authors"
    urls = dict(u.split(", ") for u in metadata.get_all("Project-URL", []))
    assert set(urls) == {"Repository", "Documentation", "Changelog", "Issues"}
    classifiers = metadata.get_all("Classifier", [])
    assert "Environment :: GPU :: NVIDIA CUDA" in classifiers
    assert f"## {fusepass.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_twine_finds_nothing_wrong(built: tuple[Path, Path]) -> None:
    pytest.importorskip("twine", reason="needs twine to check the package")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_the_map_names_files_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Map")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `.*", text, re.MULTILINE)
    names = re.findall(r"`([^`]+(?:/|\.py))`", " ".join(rows))
    assert len(names) > 30
    for name in names:
        whole = (ROOT / "fusepass" / name).exists()
        assert whole or list((ROOT / "fusepass").rglob(name.rstrip("/"))), name
    packages = {p.parent.name for p in (ROOT / "fusepass").glob("*/__init__.py")} - {"examples"}
    told = {n.partition("/")[0] for n in re.findall(r"`([^`]+)`", text) if "/" in n}
    assert packages <= told


def test_the_sdist_can_be_tested(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "Makefile", "constraints.txt", "README.md", "LICENSE"}
    wanted |= {"hatch_build.py", "CONTRIBUTING.md", "CHANGELOG.md"}
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
from fusepass.__main__ import main
assert main(["doctor", "--quick"]) == 0
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
        assert done.stdout.startswith("fused 1\n")
        assert ('torch.compile knows backend="fusepass"' in done.stdout) == (not switch)
