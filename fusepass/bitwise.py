"""Bitwise numerics: a stage is taken only where eager ran that very operator on rounded values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.fx import Node

from .epilogue import Operand, StageCall
from .facts import dtype_of, is_identity
from .program import Program, TensorConst
from .region import Region

# The operators of eager that compute one mul, div or clamp and nothing else.
_EAGER = {
    "mul": {"mul", "neg"},
    "div": {"div", "true_divide"},
    "clamp": {"clamp", "clamp_min", "clamp_max", "hardtanh", "relu", "minimum", "maximum"},
    "gelu": {"gelu"},
    "gelu_tanh": {"gelu"},
}
_EAGER["clamp"] |= {"relu6", "min", "max", "clip"}


@dataclass(frozen=True)
class Run:
    """Consecutive pieces of a region that are one stage.

    Attributes:
        stage: what they compute.
        program: how.
        start, end: positions in the region's chain of dominators.
        nodes: the graph's nodes, views and casts among them.
    """

    stage: StageCall
    program: Program
    start: int
    end: int
    nodes: tuple[Node, ...]


def refuse(region: Region, chain: Sequence[Node], runs: Sequence[Run], exit_: int) -> str | None:
    """Why the stages of ``runs`` would round differently from eager, or None."""
    dtype = dtype_of(region.z)
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    for run in runs:
        reason = _operator(run) or _numbers(region, run, dtype)
        if reason is not None:
            return reason
        if any(dtype_of(n) not in (dtype, compute) for n in run.nodes):
            return "bitwise: eager computes a stage in a wider dtype here"
    for before, after in pairwise(runs):
        both_clamp = before.stage.name == after.stage.name == "clamp"
        if not both_clamp and not _rounds(chain, before.end, after.start, dtype):
            return f"bitwise: eager does not round between {before.stage} and {after.stage} here"
    return None if _rounds(chain, runs[-1].end, exit_, dtype) else "bitwise: no rounding at the end"


def _rounds(chain: Sequence[Node], first: int, last: int, dtype: torch.dtype | None) -> bool:
    return any(dtype_of(chain[i]) == dtype for i in range(first, last + 1))


def _operator(run: Run) -> str | None:
    allowed = _EAGER[run.stage.name]
    computing = [n for n in run.nodes if not is_identity(n)]
    for node, step in zip(computing, run.program, strict=True):
        original = node.meta.get("original_aten")
        # Dynamo's own nodes for a dynamic float have no original operator: they are what ran.
        name = str(original._schema.name).split("::")[-1] if original is not None else step.name
        if name.rstrip("_") not in allowed:
            return (
                f"bitwise: eager computes this {run.stage.name} with `{name}` and other operators, "
                "which round differently from torch's own; use it, or accurate numerics"
            )
    return None


def _numbers(region: Region, run: Run, dtype: torch.dtype | None) -> str | None:
    for arg in (a for step in run.program for a in step.args):
        if isinstance(arg, TensorConst) and run.stage.name != "clamp":
            exact = torch.tensor(arg.value, dtype=torch.float64)
            if not torch.equal(exact.to(dtype).double(), exact):
                return "bitwise: a constant tensor of another dtype is rounded by the device"
        if isinstance(arg, Operand):
            operand = region.operands[arg.index].meta["val"]
            if operand.dtype != dtype and operand.device.type != "cpu":
                return "bitwise: the operand's dtype differs from the Linear's"
    return None
