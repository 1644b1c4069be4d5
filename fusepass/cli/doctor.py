"""``python -m fusepass doctor``: what this machine can run, what it lacks, and what fixes it.

Looks only: no folder is made and no setting changed. Unless told to be quick it also compiles a
model of one Linear, as a user would, and compares the result with eager's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..kernels.build import build, cache, toolchain
from ..settings import NUMERICS, NUMERICS_VARIABLE, SWITCH

_OLDEST_TORCH = (2, 11)
_ROOMY = 1 << 30  # bytes free in the cache folder's file system
_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"  # torch's own
_THEN = {
    SWITCH: 'plain torch.compile ignores it, backend="fusepass" fails',
    NUMERICS_VARIABLE: "torch.compile with fusepass fails",
}
_VARIABLES = (SWITCH, NUMERICS_VARIABLE, cache.CACHE_VARIABLE, "CUDA_HOME", "CUDA_PATH", "CXX")


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what.
        state: ``ok``; ``note`` (fusepass does without); ``problem`` (it should be fixed).
        text: what was found.
        fix: the command that fixes it, or None.
    """

    name: str
    state: str
    text: str
    fix: str | None = None


def examine(quick: bool = False) -> list[Check]:
    """All checks, in the order a reader wants them.

    Args:
        quick: compile and run nothing.
    """
    found: list[Check] = []
    for look in (_python, _torch, _registration, _variables, _gpus, _compilers, _cache, _built):
        found += look()
    if not quick:
        found += _trial()
    return found


def to_text(checks: list[Check]) -> str:
    """A line a check, its fix below it, and a last line that sums up."""
    lines = []
    for check in checks:
        lines.append(f"{check.state:8} {check.name:13} {check.text}")
        if check.fix:
            lines.append(f"{'':8} {'':13} fix: {check.fix}")
    problems = sum(c.state == "problem" for c in checks)
    lines.append(f"\n{problems} problem{'s' * (problems != 1)}" if problems else "\nall well")
    return "\n".join(lines)


def to_json(checks: list[Check]) -> str:
    """The checks as a JSON array of objects."""
    return json.dumps([dataclasses.asdict(c) for c in checks], indent=1)


# --- Python and torch ---------------------------------------------------------------------------


def _python() -> Iterator[Check]:
    from .. import __version__

    yield Check("fusepass", "ok", f"{__version__}, {Path(__file__).parents[1]}")
    yield Check("python", "ok", f"{sys.version.split()[0]}, {sys.executable}")


def _torch() -> Iterator[Check]:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    text = f"{torch.__version__}, {cuda}"
    if version < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        yield Check(
            "torch", "problem", f"{text}; fusepass needs {oldest}", _pip(f"torch>={oldest}")
        )
    else:
        yield Check("torch", "ok", text)


def _registration() -> Iterator[Check]:
    backends = torch._dynamo.list_backends(exclude_tags=())  # type: ignore[no-untyped-call]
    if "fusepass" in backends:
        yield Check("backend", "ok", 'torch.compile knows backend="fusepass"')
    else:
        text = 'torch.compile does not know backend="fusepass": the package is not installed'
        yield Check("backend", "problem", text, _pip("--no-deps", _source()))


def _source() -> str:
    """What pip installs this very fusepass from: its checkout, if it has one."""
    root = Path(__file__).resolve().parents[2]
    return str(root) if (root / "pyproject.toml").is_file() else "<the wheel or the checkout>"


def _variables() -> Iterator[Check]:
    given = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    allowed = {SWITCH: ("0", "1"), NUMERICS_VARIABLE: NUMERICS}
    wrong = [name for name, values in allowed.items() if given.get(name, values[0]) not in values]
    for name in wrong:
        text = f"{name}={given[name]!r} is none of {', '.join(allowed[name])}; {_THEN[name]}"
        yield Check("environment", "problem", text, f"unset {name}")
    if given.get(SWITCH) == "1" and not _is_activated():
        yield _never_activated()
        wrong.append(SWITCH)
    text = ", ".join(f"{name}={value}" for name, value in given.items() if name not in wrong)
    if text or not given:
        yield Check("environment", "ok", text or f"none of {', '.join(_VARIABLES)} is set")


def _is_activated() -> bool:
    """Whether this process's torch has met fusepass while it was imported."""
    return bool(getattr(sys.modules.get("fusepass_autoload"), "activated", False))


def _never_activated() -> Check:
    text, fix = "torch finds no fusepass: it is not installed", _pip("--no-deps", _source())
    if (autoload := os.environ.get(_AUTOLOAD, "1")) != "1":
        text, fix = f"{_AUTOLOAD}={autoload} keeps torch from loading it", f"unset {_AUTOLOAD}"
    return Check("environment", "problem", f"{SWITCH}=1 does nothing, {text}", fix)


def _pip(*arguments: str) -> str:
    quoted = [f"'{a}'" if set("<>=*[") & set(a) else a for a in arguments]
    return " ".join([sys.executable, "-m", "pip", "install", *quoted])


# --- GPU and compilers --------------------------------------------------------------------------


def _gpus() -> Iterator[Check]:
    if not torch.cuda.is_available():
        text = "none that torch can use: fused ops run as torch's own on the CPU"
        yield Check("GPU", "note", text)
        return
    for index in range(torch.cuda.device_count()):
        name, arch = torch.cuda.get_device_name(index), build.device_arch(index)
        kernels = "GEMM and epilogue in one kernel" if arch == "90a" else "one pointwise kernel"
        yield Check("GPU", "ok", f"{index}: {name}, sm_{arch}: {kernels}")


def _compilers() -> Iterator[Check]:
    # Without a GPU the compilers are needed only to build ahead; Inductor needs c++ everywhere.
    lacking = "problem" if torch.cuda.is_available() else "note"
    nvcc = toolchain.find_nvcc()
    if nvcc is None:
        text = "none: kernels that are not built yet cannot be built"
        yield Check("nvcc", lacking, text, _pip(*pypi_nvcc()))
    else:
        yield _nvcc(nvcc, lacking)
    ninja = shutil.which("ninja", path=toolchain.path_with_tools())
    if ninja is None:
        yield Check("ninja", lacking, "none: the binding cannot be built", _pip("ninja"))
    else:
        yield Check("ninja", "ok", ninja)
    compiler = toolchain.host_compiler()
    if compiler is None:
        text = f"no {os.environ.get('CXX', 'c++')!r}: neither Inductor nor the binding can compile"
        yield Check("C++ compiler", "problem", text, "apt-get install g++")
    else:
        yield _version("C++ compiler", Path(compiler), "problem", "apt-get install g++")


def _nvcc(nvcc: Path, lacking: str) -> Check:
    check = _version("nvcc", nvcc, lacking, _pip(*pypi_nvcc()), pick="release")
    wanted = (torch.version.cuda or "").split(".")[0]
    if check.state == "ok" and wanted and f"release {wanted}." not in check.text:
        text = f"{check.text}; torch is built for CUDA {torch.version.cuda}, the binding needs that"
        return Check("nvcc", lacking, text, _pip(*pypi_nvcc()) + " and unset CUDA_HOME")
    return check


def _version(name: str, compiler: Path, lacking: str, fix: str, pick: str = "") -> Check:
    try:
        lines = toolchain.version_of(str(compiler)).splitlines()
    except toolchain.BuildError as error:
        return Check(name, lacking, str(error), fix)
    line = next((text for text in lines if pick in text), lines[0] if lines else "")
    return Check(name, "ok", f"{compiler}: {line}")


def pypi_nvcc() -> list[str]:
    """What pip is to install for an nvcc of torch's own CUDA version, its parts of one release."""
    major, _, minor = (torch.version.cuda or "13.0").partition(".")
    if int(major) < 13:
        return [f"nvidia-cuda-nvcc-cu{major}=={major}.{minor}.*"]
    parts = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-cccl")
    return [f"{part}=={major}.{minor}.*" for part in parts]


# --- the cache ----------------------------------------------------------------------------------


def _cache() -> Iterator[Check]:
    root = cache.configured_root()
    if not root.exists():
        parent = next(p for p in root.parents if p.exists())
        if os.access(parent, os.W_OK):
            yield Check("cache", "ok", f"{root}, will be made on first use")
        else:
            fix = f"export {cache.CACHE_VARIABLE}=<a folder of yours>"
            yield Check("cache", "problem", f"{root} cannot be made: {parent} is read-only", fix)
        return
    try:
        cache.check_root(root)
    except cache.CacheUnusable as unusable:
        own = f"export {cache.CACHE_VARIABLE}=<a folder of yours>"
        fix = unusable.remedy if unusable.remedy.startswith("chmod") else own
        yield Check("cache", "problem", f"{root}: {unusable.reason}", fix)
        return
    free = shutil.disk_usage(root).free
    if free < _ROOMY:
        text = f"{root}: {free >> 20} MiB free, a build may not fit"
        yield Check("cache", "problem", text, f"export {cache.CACHE_VARIABLE}=<a roomier folder>")
    elif not os.access(root, os.W_OK):
        yield Check("cache", "note", f"{root}: read-only; what it lacks is built for one process")
    else:
        yield Check("cache", "ok", f"{root}: writable, {free >> 30} GiB free")


def _built() -> Iterator[Check]:
    try:
        entries = list(cache.entries())
    except (cache.CacheUnusable, OSError):
        return
    for folder, whole in entries:
        if not whole:
            text = f"{folder.name} is damaged or not yours; it will be built anew"
            yield Check("built", "note", text, f"rm -r '{folder}'")
    names = sorted(folder.name for folder, whole in entries if whole)
    size = sum(p.stat().st_size for f, whole in entries if whole for p in f.iterdir())
    text = f"{len(names)} kernel libraries, {size / 2**20:.1f} MiB" if names else "nothing yet"
    yield Check("built", "ok" if names else "note", text)
    if torch.cuda.is_available():
        ready = build.is_binding_built()
        text = "the binding for this machine is built" if ready else "the binding will be built"
        yield Check("built", "ok" if ready else "note", text, None if ready else _BUILD)


_BUILD = f"{sys.executable} -m fusepass build"


# --- a trial ------------------------------------------------------------------------------------


def _trial() -> Iterator[Check]:
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        yield _guarded(lambda device=device: _run_model(device), f"trial on {device}")  # type: ignore[misc]


def _guarded(look: Callable[[], Check], name: str) -> Check:
    try:
        return look()
    except Exception as error:  # whatever it is, the user is to see it, and the other checks
        return Check(name, "problem", f"{type(error).__name__}: {str(error).strip()}")


def _run_model(device: str) -> Check:
    from ..explaining.explain import without_caches
    from ..progress import step
    from ..report import collect

    layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Hardtanh(-2, 2), torch.nn.GELU())
    model, x = layers.to(device), torch.randn(16, 64, device=device)
    torch._dynamo.reset()
    waiting = step(f"compiling a small model for {device}")
    with torch.no_grad(), waiting, without_caches(), collect() as gathered:
        out, expected = torch.compile(model, backend="fusepass")(x), model(x)
    name, report = f"trial on {device}", gathered.report()
    if len(report.sites) != 1 and os.environ.get(SWITCH) != "0":
        return Check(name, "problem", f"a Linear with Hardtanh and GELU did not fuse; {report}")
    difference = float((out - expected).abs().max())
    if not difference < 1e-2:  # TF32's rounding passes, NaN and a wrong epilogue do not
        return Check(name, "problem", f"the result differs from eager's by {difference}")
    done = f"{len(report.sites)} fused of 1"
    return Check(name, "ok", f"Linear, Hardtanh, GELU: {done}, within {difference:.1e} of eager")
