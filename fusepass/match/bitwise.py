"""Bitwise numerics: a stage is taken only where eager ran that very operator on rounded values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.fx import Node
from torch.utils._python_dispatch import _disable_current_modes

from ..ir import Builder, DType, Epilogue, Input, Ref, Z
from ..ir import Node as Operation
from ..ir.fold import fold
from ..ir.recognise import recognise
from ..ir.rule import Site
from ..ir.rules import RULES
from .facts import dtype_name, dtype_of, is_cast, is_identity, packet
from .followers import composite
from .importing import Importer
from .program import Arg, Program, TensorConst, without_casts
from .region import Region

_FLOAT, _DOUBLE = torch.float32, torch.float64

# The operators of eager that compute the stage and nothing else; others have the stage's name.
_EAGER = {
    "mul": {"mul", "neg"},
    "div": {"div", "true_divide"},
    "clamp": {"clamp", "clamp_min", "clamp_max", "hardtanh", "relu", "minimum", "maximum"},
    "gelu_tanh": {"gelu"},
}
_EAGER["clamp"] |= {"relu6", "min", "max", "clip"}

# Correctly rounded or exact: their results do not depend on who computes them, or in which order.
_ROUNDED = ("mul", "div", "clamp")
_KNOWN = ("mul", "div", "clamp", "gelu", "gelu_tanh")
# Changes that no rounding shows, and that leave each operation one of eager's.
_EXACT = [r for r in RULES if not r.rounds and r.name != "a * c * -1 = a * -c"]
# Views that move an element to another place.
_MOVING = (torch.ops.aten.permute, torch.ops.aten.transpose, torch.ops.aten.t)


@dataclass(frozen=True)
class Run:
    """Consecutive pieces of a region that are one operation.

    Attributes:
        operation: its name.
        program: how it is computed, without casts.
        start, end: positions in the region's chain of dominators.
        nodes: the graph's nodes, views and casts among them.
    """

    operation: str
    program: Program
    start: int
    end: int
    nodes: tuple[Node, ...]


def written(region: Region, inside: Sequence[Node]) -> Epilogue | str:
    """What ``inside`` computes if each operation rounds as eager rounds, or why it would not.

    Args:
        inside: the nodes behind a result, which is the last of them.
    """
    dtype = DType.of(region.z.meta["val"].dtype)
    assert dtype is not None, "a GEMM's dtype is one of the table's"
    chain, runs = region.chain(inside), list[Run]()
    builder = Builder()
    value: Ref | Input = Z
    region.program(inside)  # numbers the operands in order
    for end in range(1, len(chain)):
        first = inside.index(chain[end - 1]) + 1 if end > 1 else 0
        nodes = tuple(inside[first : inside.index(chain[end]) + 1])
        if all(map(is_identity, nodes)):
            continue
        program = region.program(nodes, chain[end - 1])
        node = _operation(program, dtype)
        if isinstance(node, str):
            return composite(nodes) or node
        value = builder.apply(node.op, *(value if a == Z else a for a in node.args))
        runs.append(Run(node.op, without_casts(program), end - 1, end, nodes))
    refused = _refuse(region, chain, runs, len(chain) - 1) if runs else None
    return refused or fold(builder.finish(value), Site(dtype), _EXACT)


def _operation(program: Program, dtype: DType) -> Operation | str:
    """The one operation that ``program`` is."""
    importer = Importer(program)
    value = importer.values[-1]
    if isinstance(value, str):
        return next(v for v in importer.values if isinstance(v, str) and v)
    found = recognise(importer.builder.finish(value), dtype)
    if len(found.nodes) == 1 and found.nodes[0].op in _KNOWN:
        return found.nodes[0]
    names = [step.name for step in program if step.cast is None]
    return f"`{names[0]}` is not a stage whose rounding fusepass knows"


def _refuse(region: Region, chain: Sequence[Node], runs: Sequence[Run], exit_: int) -> str | None:
    """Why the operations of ``runs`` would round differently from eager, or None."""
    dtype: torch.dtype = region.z.meta["val"].dtype
    for run in runs:
        reason = (
            _operator(run)
            or _integers(region, run, dtype)
            or _numbers(region, run, dtype)
            or _kernel(region, run, dtype)
        )
        if reason is not None:
            return reason
    for before, after in pairwise(runs):
        both_clamp = before.operation == after.operation == "clamp"
        if not both_clamp and not _rounds(chain, before.end, after.start, dtype):
            names = f"{before.operation} and {after.operation}"
            return f"bitwise: eager does not round between {names} here"
    return None if _rounds(chain, runs[-1].end, exit_, dtype) else "bitwise: no rounding at the end"


def _rounds(chain: Sequence[Node], first: int, last: int, dtype: torch.dtype | None) -> bool:
    return any(dtype_of(chain[i]) == dtype for i in range(first, last + 1))


def _operator(run: Run) -> str | None:
    allowed = _EAGER.get(run.operation, {run.operation})
    computing = [n for n in run.nodes if not is_identity(n)]
    for node, step in zip(computing, run.program, strict=True):
        # Dynamo's own nodes for a dynamic float have no original operator: they are what ran.
        name = _original(node) or step.name
        if name.rstrip("_") not in allowed:
            return (
                f"bitwise: eager computes this {run.operation} with `{name}` and other operators, "
                "which round differently from torch's own; use it, or accurate numerics"
            )
    return None


def _integers(region: Region, run: Run, dtype: torch.dtype) -> str | None:
    """An epilogue's numbers are float64's; eager rounds an integer once, to the type it needs."""
    for step in run.program:
        for arg in step.args:
            lost = isinstance(arg, int) and int(float(arg)) != arg and dtype is not _DOUBLE
            # A tensor's number has been rounded to float64 already, but not so that one can see it.
            seen = isinstance(arg, TensorConst) and 2**53 < abs(arg.value) < 2**63
            if lost or (seen and not _exact(region, arg, dtype)):
                return f"bitwise: eager rounds {arg} once, by way of float64 it would be twice"
    return None


def _kernel(region: Region, run: Run, dtype: torch.dtype) -> str | None:
    """Why eager's kernel for the stage rounds differently from the op's, or None.

    torch's functions for CPUs give results that differ in the last place by dtype, by whether the
    tensor is contiguous, and by whether an element's place is in a vector or behind the last one.
    """
    if run.operation in _ROUNDED:
        return None
    source = _input(run)
    if dtype_of(source) != dtype:
        wide = dtype_name(dtype_of(source))
        return (
            f"bitwise: eager computes this {run.operation} in {wide}, "
            f"the op would in {dtype_name(dtype)}"
        )
    on_cpu = source.meta["val"].device.type == "cpu"
    if on_cpu and any(packet(n) in _MOVING for n in region.behind(source)):
        return (
            f"bitwise: eager computes this {run.operation} on a transposed tensor, "
            "which torch's kernels for CPUs round differently"
        )
    return None


def _input(run: Run) -> Node:
    """What eager's operator was given: where it was taken apart, a cast comes first."""
    first = next(n for n in run.nodes if not is_identity(n))
    source: Any = first.args[0]
    operator = _original(first)
    if operator is not None and is_cast(source) and _original(source) == operator:
        source = source.args[0]
    assert isinstance(source, Node), "a stage's first argument is what it is a function of"
    return source


def _original(node: Node) -> str | None:
    """The operator that the user's program ran, without namespace and overload."""
    original = node.meta.get("original_aten")
    return None if original is None else str(original._schema.name).split("::")[-1]


def _numbers(region: Region, run: Run, dtype: torch.dtype) -> str | None:
    if run.operation not in ("mul", "div"):
        return None  # bounds are exact: rounding is monotone
    for step in run.program:
        for position, arg in enumerate(step.args):
            kept = _on_host(region, arg) and (position == 1 or dtype in (_FLOAT, _DOUBLE))
            if not kept and not _exact(region, arg, dtype):
                return f"bitwise: eager rounds the factor to {dtype} first, or not, by device"
    return None


def _on_host(region: Region, arg: Arg) -> bool:
    """Whether the right-hand side ``arg`` keeps its precision: a number, or a 0-d CPU tensor."""
    if isinstance(arg, Input):
        return region.operands[arg].meta["val"].device.type == "cpu"
    return not isinstance(arg, TensorConst)


def _exact(region: Region, arg: Arg, dtype: torch.dtype) -> bool:
    """Whether ``dtype`` has ``arg``'s value, so that rounding it changes nothing."""
    if isinstance(arg, Input):
        return region.operands[arg].meta["val"].dtype == dtype
    number = arg.value if isinstance(arg, TensorConst) else arg
    if not isinstance(number, (bool, int, float)):
        return True
    with _disable_current_modes():
        exact = torch.tensor(float(number), dtype=_DOUBLE)
        return torch.equal(exact.to(dtype).double(), exact)
