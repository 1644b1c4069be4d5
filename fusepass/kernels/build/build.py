"""Builds the kernels: cubins by plain nvcc, the binding by torch's ``load_inline``.

Everything is built on first use, once per machine (``cache.py``), and named by the hash of all that
can change the result: sources, flags, compilers, torch, CUDA, architecture, processor, C library.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Union

import torch

from ...progress import step
from . import cache, extension, toolchain
from .toolchain import BuildError

SOURCES = Path(__file__).parents[1] / "csrc"
BINDING_SOURCES = (
    "binding/binding.cpp",
    "few_rows/few_rows_launch.cpp",
    "sm90/gemm_sm90_launch.cpp",
    "sm90/gemm_sm90_several.cpp",
    "sm90_f32/gemm_sm90_f32_launch.cpp",
    "sm90/gemm_sm90_tf32_launch.cpp",
)
GENERATED = "generated_epilogue.cuh"  # what kernels include the program as
_CUBIN_FLAGS = ("-std=c++17", "-O3", "-cubin", "-Xptxas", "-v")
_CFLAGS = ("-O2", "-fvisibility=hidden")
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)

_failures: dict[str, BuildError] = {}  # of this process

# source, defines, arch and perhaps the epilogue, as for build_cubin
_Plain = tuple[str, Mapping[str, object], str]
CubinRequest = Union[_Plain, tuple[str, Mapping[str, object], str, str]]


# --- keys -----------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def source_hash(source: str) -> str:
    """The hash of a file of ``csrc`` and of all it includes from there."""
    pending, seen = [source], {}
    while pending:
        name = pending.pop()
        if name not in seen:
            seen[name] = (SOURCES / name).read_bytes()
            folder = Path(name).parent
            for included in _INCLUDE.findall(seen[name].decode()):
                places = (str(folder / included), included)  # as the compiler looks for them
                pending += [f for f in places if (SOURCES / f).is_file()][:1]
    return _hash(*(part for name in sorted(seen) for part in (name, seen[name])))


def _hash(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:20]


def gencode(arch: str) -> str:
    """nvcc's flag for one architecture, such as "80" or "90a"."""
    return f"-gencode=arch=compute_{arch},code=sm_{arch}"


def device_arch(device: int) -> str:
    """The architecture of a device, with Hopper's own instructions: "80", "90a", "120"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")


def device_archs() -> tuple[str, ...]:
    """The architectures of all devices of this process."""
    return tuple(sorted({device_arch(i) for i in range(torch.cuda.device_count())}))


# --- cubins ---------------------------------------------------------------------------------------


def build_cubin(
    source: str,
    defines: Mapping[str, object],
    arch: str,
    epilogue: str = "",
    may_spill: bool = False,
) -> Path:
    """The cubin of a source of ``csrc``, compiled if this machine has not yet.

    Args:
        source: path in ``csrc``.
        defines: macros; True stands for one without a value.
        arch: such as "90a".
        epilogue: the include that ``ir.emit`` writes, where the source takes one.
        may_spill: whether the kernel may use memory of its own.

    Raises:
        BuildError: with the compiler's message.
        SpillError: if a kernel spills or has a stack frame and must not.
    """
    macros = [f"-D{k}" if v is True else f"-D{k}={v}" for k, v in sorted(defines.items())]
    flags = [*_CUBIN_FLAGS, gencode(arch), *macros]
    stem = Path(source).stem
    prefix = f"{stem}-{_hash(source_hash(source), flags, epilogue, may_spill)}-"
    nvcc = toolchain.find_nvcc()
    if nvcc is None:  # what another machine built with any compiler is as good
        found = cache.find(prefix)
        if found is None:
            toolchain.require_nvcc()
        else:
            return found / f"{stem}.cubin"

    def build(folder: Path) -> None:
        target = folder / f"{stem}.cubin"
        includes = [f"-I{SOURCES}"]
        if epilogue:
            (folder / GENERATED).write_text(epilogue)
            includes.insert(0, f"-I{folder}")
        with step(f"compiling {Path(source).name} for sm_{arch}"):
            command = [str(nvcc), *flags, *includes, str(SOURCES / source), "-o", str(target)]
            printed = toolchain.run(command)
        if not may_spill:
            toolchain.refuse_spills(printed)

    name = prefix + _hash(toolchain.nvcc_key(str(nvcc)))[:8]
    if name in _failures:  # the next shape that wants this kernel must not wait for nvcc again
        raise _failures[name]
    try:
        return cache.entry(name, build) / f"{stem}.cubin"
    except cache.CacheUnusable:
        raise  # nothing was tried
    except BuildError as error:
        _failures[name] = error
        raise


def build_first(
    source: str,
    choices: Sequence[Mapping[str, object]],
    arch: str,
    epilogue: str = "",
    may_spill: bool = False,
) -> tuple[int, Path]:
    """The cubin of the first of ``choices`` (macros, best first) that fits into the registers.

    ``epilogue`` is ``build_cubin``'s; ``may_spill`` says that the last choice is taken as it is.

    Returns:
        Its index and the cubin.

    Raises:
        BuildError: as ``build_cubin``; SpillError only if none of them fits.
    """
    for i, defines in enumerate(choices):
        try:
            last = i == len(choices) - 1
            return i, build_cubin(source, defines, arch, epilogue, may_spill and last)
        except toolchain.SpillError:
            if last:
                raise
    raise ValueError("build_first: `choices` is empty")


def build_cubins(requests: Sequence[CubinRequest]) -> list[Path]:
    """``build_cubin`` of each request, as many at once as there are processors."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return list(pool.map(lambda request: build_cubin(*request), requests))


# --- the binding ----------------------------------------------------------------------------------


def load_binding() -> Path:
    """Registers the C++ kernels with torch, building them first if this machine has not.

    Call it once in a process.

    Returns:
        The library.

    Raises:
        BuildError: with the compiler's message.
        OSError: if the library does not load.
    """
    library = build_binding()
    torch.ops.load_library(str(library))
    return library


def build_binding() -> Path:
    """The library that launches the kernels, built if this machine has not; loads nothing.

    Raises:
        BuildError: with the compiler's message.
    """
    prefix = _binding_prefix()
    nvcc, compiler = toolchain.find_nvcc(), toolchain.host_compiler()
    if nvcc is None or compiler is None:
        found = cache.find(prefix)
        if found is None:
            toolchain.require_nvcc()
            raise BuildError("no C++ compiler: install g++, or set CXX")
        return _library(found)
    versions = _hash(toolchain.nvcc_key(str(nvcc)), toolchain.version_of(compiler))[:8]

    def build(folder: Path) -> None:
        with step("building the CUDA binding, once on this machine"):
            _build_binding(nvcc, folder)

    return _library(cache.entry(prefix + versions, build))


def is_binding_built() -> bool:
    """Whether the cache holds the binding; builds and loads nothing."""
    return cache.find(_binding_prefix()) is not None


def _binding_prefix() -> str:
    return f"fusepass_cuda-{_binding_hash()}-"


def _binding_hash() -> str:
    sources = [source_hash(s) for s in BINDING_SOURCES]
    return _hash(sources, _CFLAGS, torch.__version__, torch.version.cuda, toolchain.host_platform())


def _build_binding(nvcc: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as links:
        keywords = {
            "name": "fusepass_cuda",
            "cpp_sources": [f'#include "{s}"' for s in BINDING_SOURCES],
            "extra_cflags": _CFLAGS,
            "extra_ldflags": toolchain.runtime_flags(nvcc, Path(links)),
            "extra_include_paths": [str(SOURCES)],
            "build_directory": str(folder),
            "with_cuda": True,
            "is_python_module": False,
            "no_implicit_headers": True,
        }
        extension.build_extension(toolchain.cuda_home(nvcc), keywords)
    for left_over in folder.iterdir():
        if left_over.suffix != ".so":
            left_over.unlink()


def _library(entry: Path) -> Path:
    return next(entry.glob("fusepass_cuda*.so"))
