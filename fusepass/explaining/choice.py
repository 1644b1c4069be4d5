"""Which kernel runs a fused call, and why, in words; the plan is that of ``kernels/library.py``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..ir import Epilogue
from ..kernels.calls import Call

GEMM = "torch's GEMM"
HYBRID = f"{GEMM}, then one pointwise kernel"
_NARROW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Choice:
    """A kernel and the reason for it.

    Attributes:
        kernel: what runs.
        why: a clause that reads on from "because".
    """

    kernel: str
    why: str


def choose(call: Call) -> Choice:
    """What runs ``call`` on its own device; on a GPU, built by the way if it is not yet.

    Raises:
        BuildError: if the kernel chosen cannot be built.
    """
    if call.device.type != "cuda":
        return _composed(call)
    from ..kernels.build.build import device_arch

    properties = torch.cuda.get_device_properties(call.device)
    index = _index(call.device)
    return choose_for(call, device_arch(index), properties.multi_processor_count)


def _index(device: torch.device) -> int:
    """The index of a CUDA device, that of the current one where it names none."""
    return torch.cuda.current_device() if device.index is None else device.index


def _composed(call: Call) -> Choice:
    why = "it runs on the CPU" if call.device.type == "cpu" else f"it runs on {call.device.type}"
    if call.numerics == "bitwise" or Epilogue.parse(call.epilogue).heads.columns:
        return Choice("torch's own operators, one after the other", why)
    return Choice("torch's GEMM, then code that Inductor generates", why)


def choose_for(call: Call, arch: str, num_sms: int) -> Choice:
    """What runs ``call`` on a GPU of architecture ``arch``, such as "90a".

    Raises:
        BuildError: if the kernel chosen cannot be built.
    """
    from ..kernels.library import plan_for
    from ..kernels.plan.problem import Problem

    theirs = HYBRID if call.epilogue else GEMM
    if call.numerics == "bitwise":
        return Choice(theirs, "bitwise numerics need eager's own GEMM")
    if arch != "90a":
        return Choice(theirs, f"sm_{arch} has no fused GEMM")
    if call.guessed:
        return Choice("one kernel or two", "its sizes depend on data, so each call plans anew")
    plan = plan_for(Problem.of(call), arch, num_sms)
    if plan is None:
        return Choice(theirs, _why_not(call, num_sms))
    config = plan.split("|")[0]
    return Choice(f"one kernel, {config}", _why(call, config, num_sms))


def _why(call: Call, config: str, num_sms: int) -> str:
    from ..kernels.plan import narrow as plan_narrow

    shape = f"{call.m}x{call.n}x{call.k}"
    if call.m <= plan_narrow.MOST_ROWS and not config.startswith("split"):
        return f"{call.m} rows are bound by reading the weight, which it does at full speed"
    if call.dtype not in _NARROW or not call.is_plain:
        return f"it is faster at {shape}"
    if _tuned(call):
        return f"at {shape} it was the fastest when this machine was measured"
    one, other = _modelled(call, num_sms)
    others = f"two kernels take {other}" if call.epilogue else f"{GEMM} takes {other}"
    return f"at {shape} it takes {one}, by the model; {others}"


def _why_not(call: Call, num_sms: int) -> str:
    from ..kernels.plan import sm90 as plan

    if call.dtype not in _NARROW or not call.is_plain:
        dtype = str(call.dtype).removeprefix("torch.")
        return f"no fused kernel is faster for {dtype} at {call.m}x{call.n}x{call.k}"
    if call.m < plan._MIN_M:
        return f"{call.m} rows are bound by memory, where torch's GEMM is better"
    if call.n % 8 or call.k % 8:
        return f"N = {call.n} or K = {call.k} is no multiple of 8"
    if _tuned(call):
        return "this was the fastest when this machine was measured"
    one, other = _modelled(call, num_sms)
    ours = f"at {call.m}x{call.n}x{call.k} one kernel takes {one}, by the model"
    if call.epilogue:
        return f"{ours}; these take {other}"
    return f"{ours}; this takes {other}, and is left for nothing that is not clearly faster"


def _tuned(call: Call) -> bool:
    from ..kernels.plan import winners
    from ..kernels.plan.problem import Problem

    return winners.recall(Problem.of(call))[0]


def _modelled(call: Call, num_sms: int) -> tuple[str, str]:
    """The times that the plan weighs: of the best kernel of ours, and of what else would run."""
    from ..kernels.plan import sm90 as plan
    from ..kernels.plan.alone import alone_seconds, torchs_seconds
    from ..kernels.plan.demand import Demand

    problem, bare = (call.m, call.n, call.k), not call.epilogue
    orders = (call.w_is_kn, call.x_is_km)
    demand = Demand.plain(call.with_preact, bare)
    best = plan.candidates(*problem, orders[0], demand, num_sms, orders[1])[0]
    if bare:
        one = alone_seconds(best, *problem, num_sms, orders)
        other = torchs_seconds(*problem, num_sms, call.is_biased)
    else:
        one = plan.seconds(best, *problem, demand, num_sms, orders)
        other = plan.hybrid_seconds(*problem, num_sms)
    return f"{one * 1e6:.4g} us", f"{other * 1e6:.4g} us"
