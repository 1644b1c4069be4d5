"""Match: from a GEMM node to the epilogue behind it, or to the reason why there is none.

Pure: the graph is read, never changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Union

import torch
from torch.fx import Node

from .anchor import Anchor
from .bitwise import Run, refuse
from .epilogue import Epilogue, Operand, StageCall
from .facts import Graph, dtype_name, dtype_of, has_a_place, is_identity, is_view
from .followers import ATTENTION, NOTHING, NoMatch, beyond, composite, left
from .gemms import feeds_attention, is_attention
from .program import without_casts
from .recognise import MAX_STEPS, recognise
from .region import Region
from .simplify import simplify
from .validate import validate, validate_arithmetic

# Each value is its own, NaN and infinities as well.
_NOTHING = (StageCall("mul", (1.0,)), StageCall("clamp", (-math.inf, math.inf)))


@dataclass(frozen=True)
class Match:
    """A region that an epilogue replaces.

    Attributes:
        anchor: the GEMM.
        exit: the node whose value the epilogue computes.
        epilogue: the stages.
        operands: the nodes of its run-time scalars, ``$0`` first.
        inside: the region's nodes between the pre-activation and ``exit``, ``exit`` among them.
        views: those of them that reshape, in order along one path.
        stopped: what follows and might have been part of the epilogue, if anything is.
    """

    anchor: Anchor
    exit: Node
    epilogue: Epilogue
    operands: tuple[Node, ...]
    inside: tuple[Node, ...]
    views: tuple[Node, ...]
    stopped: NoMatch | None = None

    @property
    def size(self) -> int:
        """How many computing nodes the epilogue replaces."""
        return sum(not is_identity(n) for n in self.inside)


def bare(anchor: Anchor, behind: NoMatch) -> Match:
    """The site that is the GEMM alone, with its bias.

    Args:
        behind: why it has no epilogue.
    """
    return Match(anchor, anchor.z, Epilogue(()), (), (), (), behind)


def match(facts: Graph, anchor: Anchor, numerics: str) -> Match | NoMatch:
    """The largest region behind ``anchor`` that is an epilogue, or why there is none.

    Args:
        facts: of the anchor's graph.
        numerics: ``accurate`` or ``bitwise``.
    """
    region = Region(facts, anchor.z)
    blocked = ATTENTION if is_attention(facts, anchor.gemm) else anchor.blocked
    if blocked is not None:
        return NoMatch(blocked, left(region).node)
    best: Match | None = None
    reasons = []
    for end in region.ends():
        chain = region.chain(end)
        if all(map(is_identity, chain[1:])):
            continue  # z itself, seen through views and casts
        found = _read(region, anchor, chain, numerics)
        if isinstance(found, NoMatch):
            reasons.append(found)
        elif best is None or found.size > best.size:
            best = found
    if best is None:
        return left(region, reasons)
    if all(s.name == "mul" for s in best.epilogue.stages) and feeds_attention(
        facts, best.exit, True
    ):
        return NoMatch("a scale of attention, which is computed with it", best.exit)
    return replace(best, stopped=beyond(region, best.exit, best.stopped))


# --- along one chain of dominators --------------------------------------------------------------


def _read(region: Region, anchor: Anchor, chain: Sequence[Node], numerics: str) -> Match | NoMatch:
    double = dtype_of(anchor.z) is torch.float64
    # Eager's own operators are a piece each; what it computed by several it rounded between them.
    pieces = 1 if numerics == "bitwise" else 2 * MAX_STEPS
    region.program(anchor.z, region.between(anchor.z, chain[-1]))  # numbers the operands in order
    runs, failed = _runs(region, chain, double, pieces)
    for count in range(len(runs), 0, -1):
        found = _candidate(region, anchor, chain, runs[:count], numerics)
        if isinstance(found, Match):
            return replace(found, stopped=failed)
        if count == len(runs):
            failed = found
    assert failed is not None, "a chain is read to its end or to a failure"
    return failed


def _runs(
    region: Region, chain: Sequence[Node], double: bool, most: int
) -> tuple[list[Run], NoMatch | None]:
    """The chain cut into stages of at most ``most`` pieces, longest first, up to what is none."""
    runs: list[Run] = []
    start, last = 0, len(chain) - 1
    while start < last:
        if is_identity(chain[start + 1]):
            start += 1
            continue
        reason = ""
        # Longest first: what is left in `reason` is about the piece alone.
        for end in range(min(last, start + most), start, -1):
            if is_identity(chain[end]):
                continue
            found = _run(region, chain, start, end, double)
            if isinstance(found, Run):
                runs.append(found)
                start = end
                break
            reason = found
        else:
            piece = region.between(chain[start], chain[start + 1])
            return runs, NoMatch(composite(piece) or reason, chain[start + 1])
    return runs, None


def _run(region: Region, chain: Sequence[Node], start: int, end: int, double: bool) -> Run | str:
    nodes = tuple(region.between(chain[start], chain[end]))
    exact = region.program(chain[start], nodes)
    program = without_casts(exact)
    stage = recognise(program, double)
    if isinstance(stage, str):
        return stage
    if len(program) > 1:
        dtype: torch.dtype = chain[start].meta["val"].dtype
        difference = validate_arithmetic(exact, Epilogue((stage,)), dtype)
        if difference is not None:
            return difference
    return Run(stage, program, start, end, nodes)


def _candidate(
    region: Region, anchor: Anchor, chain: Sequence[Node], runs: Sequence[Run], numerics: str
) -> Match | NoMatch:
    """The site that ends with the last of ``runs``."""
    z, dtype, bitwise = anchor.z, dtype_of(anchor.z), numerics == "bitwise"
    position = _exit(chain, runs[-1].end, dtype)
    if position is None:
        wide = dtype_name(dtype_of(chain[runs[-1].end]))
        reason = f"the result stays in {wide}, the Linear computes in {dtype_name(dtype)}"
        return NoMatch(reason, chain[-1])
    exit_ = chain[position]
    refusal = refuse(region, chain, runs, position) if bitwise else None
    if refusal is not None:
        return NoMatch(refusal, exit_)
    inside = region.between(z, exit_)
    simple = simplify([r.stage for r in runs], z.meta["val"].dtype, bitwise)
    stages = tuple(s for s in simple if s not in _NOTHING)
    if not stages:
        return NoMatch(f"{NOTHING}: a factor of 1 changes nothing", exit_)
    try:
        epilogue = Epilogue(stages)
    except ValueError as error:  # more stages or scalars than a kernel takes
        return NoMatch(str(error), exit_)
    difference = validate(region.program(z, inside), epilogue, z.meta["val"].dtype)
    if difference is not None:
        return NoMatch(difference, exit_)
    epilogue, operands = _renumber(epilogue, region.operands)
    if any(map(has_a_place, region.facts.late(operands, z))):
        return NoMatch("a run-time scalar is drawn at random behind the Linear", exit_)
    views = _views(region, exit_)
    return Match(anchor, exit_, epilogue, operands, tuple(inside), views)


def _exit(chain: Sequence[Node], end: int, dtype: torch.dtype | None) -> int | None:
    """The first position from ``end`` on, past nothing but views and casts, in ``dtype``."""
    for position in range(end, len(chain)):
        if position > end and not is_identity(chain[position]):
            return None
        if dtype_of(chain[position]) == dtype:
            return position
    return None


def _renumber(epilogue: Epilogue, nodes: Sequence[Node]) -> tuple[Epilogue, tuple[Node, ...]]:
    """``$0, $1, …`` in the order in which the epilogue reads them."""
    used: list[int] = []

    def scalar(value: Union[float, Operand]) -> Union[float, Operand]:
        if not isinstance(value, Operand):
            return value
        if value.index not in used:
            used.append(value.index)
        return Operand(used.index(value.index))

    stages = tuple(StageCall(s.name, tuple(map(scalar, s.scalars))) for s in epilogue.stages)
    return Epilogue(stages), tuple(nodes[i] for i in used)


def _views(region: Region, node: Node) -> tuple[Node, ...]:
    """The views on the way from z to ``node``; all ways have the same."""
    views: list[Node] = []
    while node is not region.z:
        if is_view(node):
            views.append(node)
        node = region.members[node].inputs[0]
    return tuple(views[::-1])
