"""A program of a test's own with the launchers' host code in it, on a machine without CUDA."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fusepass.kernels.build import toolchain
from fusepass.kernels.build.build import SOURCES


def build(compiler: str, folder: Path, text: str, sources: Iterable[str]) -> Path:
    """The program of ``text`` and ``sources``, files of csrc; of CUDA it may call nothing."""
    nvcc = toolchain.find_nvcc()
    assert nvcc is not None
    (folder / "main.cpp").write_text(text)
    includes = [f"-I{SOURCES}", f"-isystem{toolchain.cuda_home(nvcc) / 'include'}"]
    flags = ["-std=c++17", "-w", "-no-pie", "-fno-pie", "-Wl,--unresolved-symbols=ignore-all"]
    files = ["main.cpp", *(str(SOURCES / name) for name in sources)]
    toolchain.run([compiler, *flags, *includes, *files, "-o", "ask"], folder)
    return folder / "ask"
