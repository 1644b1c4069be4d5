"""``python -m fusepass build``: kernels built ahead, on a machine that need not have a GPU.

What is built lands in the cache folder (FUSEPASS_CACHE_DIR); that folder is what one ships.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import torch

from ..explaining.choice import HYBRID, choose_for
from ..explaining.explain import observe
from ..ir import DType, Epilogue
from ..ir import outputs as of
from ..kernels import pointwise, widened
from ..kernels.build import build as building
from ..kernels.build import cache
from ..kernels.build.toolchain import BuildError
from ..kernels.calls import Call, Linears
from ..kernels.plan import several
from ..kernels.plan.problem import plan_code
from ..progress import step

# Multiprocessors of the parts that are sold, where no such GPU can be asked.
_SMS = {"90a": 132}
_MOST_SMS = 132


def architectures(names: Sequence[str] | None) -> tuple[str, ...]:
    """The architectures asked for as nvcc numbers them, "90a"; this machine's if none is named.

    Raises:
        ValueError: for what is no architecture, or if none is named and there is no GPU.
    """
    if not names:
        archs = building.device_archs()
        if not archs:
            raise ValueError("there is no GPU here; name what to build for: --arch sm_90a")
        return archs
    for name in names:
        if not re.fullmatch(r"(sm_)?\d{2,3}[af]?", name):
            raise ValueError(f"{name!r} is no architecture; say for instance sm_90a or sm_80")
    numbers = (name.removeprefix("sm_") for name in names)
    # Hopper's fused kernels need its own instructions, and a device there asks for "90a".
    return tuple(dict.fromkeys("90a" if n == "90" else n for n in numbers))


def calls_of(model: torch.nn.Module, inputs: Sequence[Any], train: bool) -> list[Call | Linears]:
    """The fused calls of the model's inference and, if asked, of its training, without repeats."""
    calls: list[Call | Linears] = []
    with step("finding what fuses"):
        for training in (False, True) if train else (False,):
            with torch.set_grad_enabled(training):
                _, of_graphs = observe(model.train(training), inputs, {}, None)
            calls += [call for of_graph in of_graphs for call in of_graph]
    return list(dict.fromkeys(calls))


def with_any_rows(calls: Sequence[Call | Linears]) -> list[Call | Linears]:
    """The calls with every number of rows up to 65536 that may get a kernel of its own."""
    return [dataclasses.replace(c, m=m) for c in calls for m in (c.m, *range(64, 65537, 64))]


def build(archs: Sequence[str], calls: Sequence[Call | Linears]) -> int:
    """Builds the binding and the kernels of ``calls`` for each architecture; prints what it did.

    Returns:
        0, or 1 if something could not be built or the cache folder cannot hold it.
    """
    try:
        with cache.within_folder() as root:
            failed = _build_all(archs, calls)
    except cache.CacheUnusable as unusable:
        print(f"failed  {unusable}")
        return 1
    if any(whole for _, whole in cache.entries()):
        print(f"\nkernels are in {root}")
        print(f"to ship them, copy that folder and set {cache.CACHE_VARIABLE} to where it is")
    return int(failed)


def _build_all(archs: Sequence[str], calls: Sequence[Call | Linears]) -> bool:
    """Builds what ``build`` is to; True if something could not be built."""
    failed = not _build_binding()
    for arch in archs:
        told: set[str] = set()
        for call in calls:
            if isinstance(call, Call):
                failed |= not _build_call(call, arch, told)
            else:
                failed |= not _build_linears(call, arch, told)
        if any(call.dtype == torch.bfloat16 for call in calls):
            failed |= not _build_widened(arch)
    return failed


def _build_widened(arch: str) -> bool:
    """Builds the kernel of widened batches, which a model's graph asks for only on a Hopper GPU."""
    if arch != "90a":
        return True
    name = f"sm_{arch}  batches widened from bfloat16"
    try:
        widened.cubin(arch)
    except cache.CacheUnusable:
        raise
    except (BuildError, OSError) as error:
        print(f"failed  {name}\n{error}")
        return False
    print(f"built   {name}", flush=True)
    return True


def _build_linears(call: Linears, arch: str, told: set[str]) -> bool:
    """As ``_build_call``, the kernel that multiplies by several weights, if one is to."""
    dtype = str(call.dtype).removeprefix("torch.")
    name = f"sm_{arch}  [{' + '.join(map(str, call.widths))}, {call.k}] {dtype}"
    sizes = (call.m, call.widths, call.k, call.w_is_kn, call.x_is_km)
    try:
        plan = several.plan(plan_code(call.dtype), *sizes, arch, _SMS.get(arch, _MOST_SMS))
    except cache.CacheUnusable:
        raise
    except (BuildError, OSError) as error:
        line, done = f"failed  {name}\n{error}", False
    else:
        runs = "uses    {}: one after the other" if plan is None else "built   {}: one launch, {}"
        line, done = runs.format(name, plan and plan.partition("|")[0]), True
    return _tell(line, done, told)


def _build_call(call: Call, arch: str, told: set[str]) -> bool:
    """Builds one call's kernel; says so unless it is among those ``told`` of already."""
    dtype = str(call.dtype).removeprefix("torch.")
    name = f"sm_{arch}  [{call.n}, {call.k}] {dtype} {call.epilogue}"
    name += " with pre-activation" if call.with_preact else ""
    try:
        choice = choose_for(call, arch, _SMS.get(arch, _MOST_SMS))
        _build_pointwise(call, arch)
    except cache.CacheUnusable:
        raise
    except (BuildError, OSError) as error:
        line, done = f"failed  {name}\n{error}", False
    else:
        verb = "uses   " if choice.kernel == HYBRID else "built  "
        line, done = f"{verb} {name}: {choice.kernel}", True
    return _tell(line, done, told)


def _tell(line: str, done: bool, told: set[str]) -> bool:
    """Prints a line that it has not yet; whether the call is ``done``."""
    if line not in told:
        told.add(line)
        print(line, flush=True)
    return done


def _build_pointwise(call: Call, arch: str) -> None:
    """Builds what follows torch's GEMM, which other sizes of the same call may want.

    Which operands are on the host, the graph does not say; on a GPU as a rule none is.
    """
    dtype, bitwise = DType.of(call.dtype), call.numerics == "bitwise"
    assert dtype is not None, "an op's tensors are floating point"
    rest = of.computed(Epilogue.parse(call.epilogue))
    if rest is not None:
        pointwise.build(rest, dtype, bitwise, 0, arch)


def _build_binding() -> bool:
    if torch.version.cuda is None:
        print("skipped binding: this torch is built without CUDA, so it has no use here")
        return True
    try:
        building.build_binding()
    except cache.CacheUnusable:
        raise
    except (BuildError, OSError) as error:
        print(f"failed  binding\n{error}")
        return False
    print(f"built   binding, for torch {torch.__version__}")
    return True
