"""The compilers: where they are, which they are, and running them so that their errors are seen."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

_RESOURCES = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)


class BuildError(RuntimeError):
    """Nothing could be built; the message holds the compiler's own and what to do."""


class SpillError(BuildError):
    """A kernel does not fit into the registers; another configuration may."""


def find_nvcc() -> Path | None:
    """nvcc of CUDA_HOME, of PATH, of the usual folder or of PyPI's nvidia-cuda-nvcc."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    for home in homes:
        if home and (Path(home) / "bin" / "nvcc").is_file():
            return Path(home) / "bin" / "nvcc"
    if on_path := shutil.which("nvcc"):
        return Path(on_path)
    for home in ("/usr/local/cuda", *_pypi_homes()):
        if (Path(home) / "bin" / "nvcc").is_file():
            return Path(home) / "bin" / "nvcc"
    return None


def _pypi_homes() -> list[str]:
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    return [
        str(home)
        for root in roots
        for pattern in ("cu[0-9]*", "cuda_nvcc")
        for home in sorted(Path(root).glob(pattern), reverse=True)
    ]


def require_nvcc() -> Path:
    """As ``find_nvcc``.

    Raises:
        BuildError: if there is none, with how to get one.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildError(
            "no nvcc: install the CUDA toolkit and set CUDA_HOME, or pip install nvidia-cuda-nvcc"
        )
    return nvcc


def cuda_home(nvcc: Path) -> Path:
    """The toolkit of ``nvcc``, which may be a link or a script elsewhere: bin/nvcc and headers.

    Raises:
        BuildError: if there are no headers.
    """
    told = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    near = [str(nvcc.parent.parent), str(nvcc.resolve().parent.parent), "/usr/local/cuda"]
    for home in (Path(h) for h in (*told, *near, *_pypi_homes()) if h):
        if (home / "bin" / "nvcc").is_file() and (home / "include" / "cuda_runtime.h").is_file():
            return home
    raise BuildError(
        f"no CUDA headers beside {nvcc}: set CUDA_HOME to a CUDA toolkit that has "
        "include/cuda_runtime.h, or pip install nvidia-cuda-runtime"
    )


def host_compiler() -> str | None:
    """The C++ compiler torch's extensions use."""
    return shutil.which(os.environ.get("CXX", "c++"))


def host_platform() -> tuple[str, ...]:
    """What a library of the host compiler needs of a machine: its processor and its C library."""
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):  # it is not glibc
        libc = None
    return (platform.system(), platform.machine(), libc or "-".join(platform.libc_ver()))


@lru_cache(maxsize=8)
def version_of(compiler: str) -> str:
    """What the compiler says of itself: part of the key of all it builds."""
    return run([compiler, "--version"]).strip()


def run(
    command: Sequence[str],
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    name: str | None = None,
) -> str:
    """Runs a compiler; returns what it printed.

    Args:
        command: the program and its arguments.
        folder: where it runs; here if None.
        environment: all of its environment variables; this process's if None.
        name: what an error says has failed; the command if None.

    Raises:
        BuildError: with the command and the compiler's own message.
    """
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    try:
        done = subprocess.run(list(command), cwd=folder, env=environment, **pipes)
    except OSError as error:
        raise BuildError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        failed = f"{name or shlex.join(command)} failed with status {done.returncode}"
        raise BuildError(f"{failed}:\n{done.stdout.strip()}")
    return str(done.stdout)


def refuse_spills(printed: str) -> None:
    """Checks ptxas's report (-Xptxas -v): every kernel keeps everything in registers.

    Raises:
        SpillError: if a kernel has a stack frame or spills.
        BuildError: if there is no report.
    """
    reports = _RESOURCES.findall(printed)
    if not reports:
        raise BuildError(f"ptxas reported no resources:\n{printed}")
    for report in reports:
        if any(int(count) for count in report):
            raise SpillError(f"ptxas spilled registers or made a stack frame:\n{printed}")


def runtime_flags(nvcc: Path, folder: Path) -> list[str]:
    """The linker's flags for -lcudart to be found, beyond those torch gives.

    PyPI's CUDA runtime has libcudart.so.13 but no libcudart.so: a link of that name is made in
    ``folder``, which must stay as long as the linker runs.
    """
    home = cuda_home(nvcc)
    folders = (home / "lib64", home / "lib")
    libraries = [p for place in folders for p in sorted(place.glob("libcudart.so*"))]
    if not libraries or any(p.name == "libcudart.so" for p in libraries):
        return []
    (folder / "libcudart.so").symlink_to(libraries[-1])
    return [f"-L{folder}"]


def nvcc_key(nvcc: str) -> tuple[str, ...]:
    """What of the compiler changes its output: its version, and the flags it takes from outside."""
    outside = (os.environ.get(f"NVCC_{which}_FLAGS", "") for which in ("PREPEND", "APPEND"))
    return (version_of(nvcc), *outside)


def path_with_tools() -> str:
    """PATH with the folder of this Python first, where pip puts ninja."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
