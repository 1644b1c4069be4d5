"""What the op asks of the kernels at run time; it never fails a model that torch could run."""

from __future__ import annotations

import threading
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..ir import Z1, Epilogue, Output, Z
from ..ir import outputs as of
from ..ir.operands import places
from ..ir.outputs import reads_only_z
from .build.toolchain import BuildError, SpillError

if TYPE_CHECKING:
    import torch

    from .plan.problem import Problem

_lock = threading.Lock()
_loaded: bool | None = None  # None: not tried yet
_warned: set[str] = set()  # what the user has been told
# They reduce large arguments by a table on the stack, beside which no GEMM keeps its accumulators.
ON_THE_STACK = frozenset(("sin", "cos"))
_LEAST_SMS = 2  # a cluster is of two multiprocessors


def load() -> bool:
    """Loads the C++ kernels, once; False, after one warning, if this machine cannot build them."""
    global _loaded
    with _lock:
        if _loaded is None:
            from .build.build import load_binding

            try:
                load_binding()
                _loaded = True
            except (BuildError, OSError) as error:
                _loaded = False
                warn_slower("fused ops run as torch's own operators", error)
        return _loaded


def plan_kernel(problem: Problem, device: int) -> str:
    """The kernel for a problem, built: "hybrid" or "<config>|<cubin's path>|<kernel's name>".

    Args:
        problem: what is to run.
        device: index of the CUDA device.
    """
    import torch

    from .build.build import device_arch

    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    try:
        return plan_for(problem, device_arch(device), num_sms) or "hybrid"
    except (BuildError, OSError) as error:
        warn_slower("GEMM and epilogue run as two kernels", error)
        return "hybrid"


def describe(epilogue: str, dtype: int, with_preact: bool) -> tuple[Any, ...]:
    """What the binding knows of an epilogue, as ``fusepass::_describe`` (linear.py) lists it.

    Args:
        epilogue: the text.
        dtype: a code of ``problem.py``.
        with_preact: whether z is one more output than the text says.

    Raises:
        ValueError: if it is no epilogue.
    """
    from ..ir.lower import lower
    from .plan.problem import device_code, ir_dtype

    program, site = Epilogue.parse(epilogue), ir_dtype(dtype)
    if with_preact:
        program = of.with_preact(program)
    planned, preact = _without_preact(program)
    try:
        numbers = lower(planned, site).numbers
    except ValueError:  # too large, once macros are expanded: no kernel will ask for them
        numbers = ()
    vectors = [p for p in places(program) if p.kind != "$"]
    written = [(None, Z, Z1).index(owner) for owner in of.taken(program)]
    return (
        str(program),
        str(planned),
        preact,
        Z1 in program.inputs,
        [program.count(kind) for kind in ("$", "col", "row", "mat")],
        [device_code(p.dtype or site) for p in vectors],
        [device_code(o.dtype or site) for o in program.outputs],
        [o.is_sum for o in program.outputs],
        written,
        list(numbers),
        program.heads.columns,
    )


def _without_preact(program: Epilogue) -> tuple[Epilogue, bool]:
    """A chain of z and scalars without its second output, if that is z; whether it is."""
    if len(program.outputs) != 2 or program.outputs[1] != Output(Z):
        return program, False
    first = Epilogue(program.nodes, program.outputs[:1])
    return (first, True) if reads_only_z(first) else (program, False)


def pointwise_kernel(
    epilogue: str, dtype: int, bitwise: bool, host: int, device: int
) -> tuple[str, bool, list[float]]:
    """The cubin of the kernel that follows torch's GEMM, built, and what it is.

    Args:
        epilogue: the text.
        dtype: a code of ``problem.py``.
        bitwise: the numerics.
        host: bit i stands for an operand $i on the CPU.
        device: index of the CUDA device.

    Returns:
        The path, or "" where torch's own operators run instead; whether the kernel is that of
        tiles; the numbers of its program.
    """
    from . import pointwise
    from .build.build import device_arch
    from .plan.problem import ir_dtype

    rest = of.computed(Epilogue.parse(epilogue))
    assert rest is not None, "nothing is left to compute"
    try:
        cubin, numbers = pointwise.build(rest, ir_dtype(dtype), bitwise, host, device_arch(device))
    except (BuildError, OSError, ValueError) as error:
        warn_slower("epilogues run as torch's own operators", error)
        return "", False, []
    return str(cubin), not pointwise.is_flat(rest), list(numbers)


def plan_for(problem: Problem, arch: str, num_sms: int) -> str | None:
    """As ``plan_kernel`` for any architecture, there or not; None where the hybrid is chosen.

    Raises:
        BuildError: if the kernel cannot be built, other than for want of registers.
    """
    from .plan import f32 as plan_f32
    from .plan import few as plan_few
    from .plan import gated as plan_gated
    from .plan import sm90 as plan
    from .plan import tf32 as plan_tf32
    from .plan.problem import BFLOAT16, FLOAT16, FLOAT32, TF32

    program = Epilogue.parse(problem.epilogue)
    if any(node.op in ON_THE_STACK for node in program.nodes):
        return None
    plans = {FLOAT32: plan_f32, TF32: plan_tf32, FLOAT16: plan, BFLOAT16: plan}
    if problem.gated:
        plans = {FLOAT16: plan_gated, BFLOAT16: plan_gated}
    planner = plans.get(problem.dtype)
    if program.heads.columns and planner is not plan:  # which alone has whole heads in one thread
        return None
    if num_sms < _LEAST_SMS:
        return None
    try:
        few = plan_few.plan(problem, arch)
        if few is not None or planner is None or (problem.x_is_km and planner is plan_tf32):
            return few
        return planner.plan(problem, arch, num_sms)
    except (SpillError, ValueError):  # an epilogue that is too large to stand beside accumulators
        return None


def chosen(
    dtype: torch.dtype,
    m: int,
    n: int,
    k: int,
    w_is_kn: bool,
    num_sms: int,
    x_is_km: bool = False,
    bare: bool = False,
    biased: bool = False,
) -> bool:
    """Whether the plan prefers one kernel of ours on Hopper, at torch's present precision.

    Otherwise the framework's GEMM runs and, unless the epilogue is empty (``bare``), one more;
    ``biased`` as of a ``Problem``.
    """
    from .plan.problem import plan_code

    epilogue = "" if bare else None
    orders = (w_is_kn, num_sms, x_is_km)
    return _chosen(plan_code(dtype), m, n, k, *orders, epilogue, biased=biased)


def chosen_program(
    dtype: torch.dtype,
    m: int,
    n: int,
    k: int,
    w_is_kn: bool,
    num_sms: int,
    x_is_km: bool,
    epilogue: str,
    spared: float | None = None,
    group: int = 0,
) -> bool:
    """As ``chosen``, for a program of z and of tensors beside it; ``spared`` as in ``sm90.choose``,
    of 16-bit dtypes, and ``group`` as of a ``Problem``."""
    from .plan.problem import plan_code

    return _chosen(plan_code(dtype), m, n, k, w_is_kn, num_sms, x_is_km, epilogue, spared, group)


@lru_cache(maxsize=4096)
def _chosen(
    code: int,
    m: int,
    n: int,
    k: int,
    w_is_kn: bool,
    num_sms: int,
    x_is_km: bool,
    epilogue: str | None,
    spared: float | None = None,
    group: int = 0,
    biased: bool = False,
) -> bool:
    """``epilogue`` is the program's text; None stands for any of z and scalars."""
    from .plan import f32 as plan_f32
    from .plan import few as plan_few
    from .plan import sm90 as plan
    from .plan import tf32 as plan_tf32
    from .plan.demand import Demand
    from .plan.problem import FLOAT32, TF32, ir_dtype

    program, bare = Epilogue.parse(epilogue or ""), epilogue == ""
    if num_sms < _LEAST_SMS or any(node.op in ON_THE_STACK for node in program.nodes):
        return False
    few = plan_few.choose(code, m, n, k, w_is_kn, x_is_km, bare=bare)
    if few is not None and plan_few.computes(program):
        return True
    if program.heads.columns and code in (FLOAT32, TF32):
        return False
    if code == FLOAT32:
        return plan_f32.choose(m, n, k, False, num_sms, w_is_kn, x_is_km, bare) is not None
    if code == TF32:
        wanted = not x_is_km and not epilogue
        return wanted and plan_tf32.choose(m, n, k, w_is_kn, num_sms, bare=bare) is not None
    demand: Demand | str = Demand.plain(bare=bare)
    if epilogue:
        demand = Demand.of(program, ir_dtype(code), group=group)
    if isinstance(demand, str):
        return False
    return plan.choose(m, n, k, w_is_kn, demand, num_sms, x_is_km, spared, biased) is not None


def chosen_gated(
    dtype: torch.dtype,
    m: int,
    n: int,
    k: int,
    w_is_kn: bool,
    num_sms: int,
    x_is_km: bool = False,
    stores: int = 1,
) -> bool:
    """Whether the plan prefers one kernel of ours for x [m, k] and two weights [n, k].

    ``stores`` is how many outputs of m x n there are.
    """
    import torch

    from .plan import few as plan_few
    from .plan import gated as plan_gated
    from .plan.demand import Demand
    from .plan.problem import plan_code

    few = plan_few.choose(plan_code(dtype), m, n, k, w_is_kn, x_is_km, gated=True)
    if few is not None and num_sms >= _LEAST_SMS:
        return True
    if dtype not in (torch.float16, torch.bfloat16) or num_sms < _LEAST_SMS:
        return False
    demand = Demand(stores=(2,) * stores, gated=True)
    return plan_gated.choose(m, n, k, w_is_kn, demand, num_sms, x_is_km) is not None


def warn_slower(what: str, error: Exception) -> None:
    """Says once in a process that ``what``, which is slower, and the first reason."""
    if what in _warned:
        return
    _warned.add(what)
    warnings.warn(f"fusepass: {what}, which is slower: {error}", stacklevel=2)
