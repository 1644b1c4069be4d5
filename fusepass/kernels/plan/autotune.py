"""``max_autotune``: time the few best configurations on the user's own shapes, keep the winner."""

from __future__ import annotations

import statistics

import torch

from ...ir import Epilogue
from ...progress import step
from ..build.build import build_cubins, device_arch
from ..calls import Call
from ..library import load
from . import sm90 as plan
from . import winners
from .apart import stand_apart
from .demand import Demand
from .problem import BFLOAT16, Problem, ir_dtype

CANDIDATES = 6  # besides the hybrid: the model's first few
_ROUNDS = 15


def tune(call: Call) -> None:
    """Times candidates for ``call`` on its device and remembers the fastest; once per machine.

    Does nothing where there is no choice, or none that is tuned: another device or dtype, bitwise
    numerics, a program of more than z and scalars.

    Raises:
        BuildError: if a candidate cannot be built.
    """
    narrow = call.dtype in (torch.float16, torch.bfloat16)
    known = narrow and call.is_plain  # the plan has measured what reads tensors beside z
    if call.device.type != "cuda" or not known or call.numerics == "bitwise":
        return
    index = torch.cuda.current_device() if call.device.index is None else call.device.index
    device, arch = torch.device("cuda", index), device_arch(index)
    problem = Problem.of(call)
    if arch != "90a" or not plan.possible(call.m, call.n, call.k, call.x_is_km) or not load():
        return
    with torch.cuda.device(device):
        if not winners.recall(problem)[0]:
            _tune(problem, call, device, arch)


def _tune(problem: Problem, call: Call, device: torch.device, arch: str) -> None:
    sms = torch.cuda.get_device_properties(device).multi_processor_count
    shape, bf16 = (problem.m, problem.n, problem.k), problem.dtype == BFLOAT16
    dtype = ir_dtype(problem.dtype)
    demand = Demand.of(Epilogue.parse(problem.epilogue), dtype, problem.with_preact)
    assert isinstance(demand, Demand)  # a plain call's
    some = plan.candidates(*shape, problem.w_is_kn, demand, sms, problem.x_is_km)[:CANDIDATES]
    with step(f"tuning {problem.m}x{problem.k}->{problem.n}, {len(some)} candidates"):
        flags = (bf16, problem.w_is_kn, problem.with_preact, problem.x_is_km)
        build_cubins(
            [
                (
                    "sm90/gemm_sm90.cu",
                    plan.defines(c, *flags, stand_apart(c, shape, demand, sms)),
                    arch,
                    problem.include,
                )
                for c in some
            ]
        )
        winner = _fastest(problem, call, [None, *some], device)
    winners.remember(problem, winner)
    torch.ops.fusepass._forget_plans()


def _fastest(
    problem: Problem, call: Call, some: list[plan.Config | None], device: torch.device
) -> plan.Config | None:
    m, n, k = problem.m, problem.n, problem.k
    dtype, epilogue = call.dtype, call.epilogue
    bias = torch.randn(n, device=device, dtype=dtype) if call.has_bias else None
    x = _stored(m, k, problem.x_is_km, device, dtype)
    weight = _stored(n, k, problem.w_is_kn, device, dtype)
    operands = [torch.ones((), device=device)] * Epilogue.parse(epilogue).num_operands
    op = torch.ops.fusepass.linear_with_preact if problem.with_preact else torch.ops.fusepass.linear
    times: list[list[float]] = [[] for _ in some]
    try:
        for round_ in range(_ROUNDS + 1):
            for config, taken in zip(some, times, strict=True):
                winners.forced[problem] = config
                torch.ops.fusepass._forget_plans()
                op(x, weight, bias, epilogue, operands)  # plans; the next call only runs
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                op(x, weight, bias, epilogue, operands)
                end.record()
                end.synchronize()
                if round_:
                    taken.append(start.elapsed_time(end))
    finally:
        winners.forced.pop(problem, None)
        torch.ops.fusepass._forget_plans()
    medians = [statistics.median(taken) for taken in times]
    return some[medians.index(min(medians))]


def _stored(
    rows: int, k: int, transposed: bool, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    sizes = (k, rows) if transposed else (rows, k)
    matrix = torch.randn(sizes, device=device, dtype=dtype)
    return matrix.t() if transposed else matrix
