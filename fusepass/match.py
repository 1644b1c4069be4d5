"""Match: from a GEMM node to the epilogue behind it, or to the reason why there is none.

Pure: the graph is read, never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch.fx import Node

from . import bitwise
from .anchor import Anchor
from .facts import Graph, dtype_name, dtype_of, has_a_place, is_identity, is_view
from .followers import ATTENTION, NOTHING, NoMatch, beyond, composite, layer_reason, left
from .gemms import feeds_attention, is_attention
from .importing import Importer
from .ir import DType, Epilogue, Input, Ref
from .ir.fold import Site, fold
from .ir.operands import compact
from .ir.recognise import recognise
from .region import Region
from .validate import validate, validate_arithmetic


@dataclass(frozen=True)
class Match:
    """A region that an epilogue replaces.

    Attributes:
        anchor: the GEMM.
        exit: the node whose value the epilogue computes.
        epilogue: the program.
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
    return Match(anchor, anchor.z, Epilogue(), (), (), (), behind)


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
    readable = _Readable(region)
    reasons = [readable.first] if readable.first is not None else []
    for exit_ in readable.exits():
        found = _site(readable, anchor, exit_, numerics)
        if isinstance(found, NoMatch):
            reasons.append(found)
            continue
        scale = all(node.op == "mul" for node in found.epilogue.nodes)
        if scale and feeds_attention(facts, exit_, True):
            return NoMatch("a scale of attention, which is computed with it", exit_)
        return replace(found, stopped=beyond(region, exit_, readable.first or _last(reasons)))
    return left(region, readable.unfinished(reasons))


def _last(reasons: Sequence[NoMatch]) -> NoMatch | None:
    return reasons[-1] if reasons else None


# --- what of a region can be read -----------------------------------------------------------------


class _Readable:
    """The part of a region that is operations of the table, from z on.

    Attributes:
        region: the whole.
        values: its nodes' values in the program, views and casts among them.
        first: the first node that is none, with the reason; None if all are read.
    """

    def __init__(self, region: Region) -> None:
        self.region, self.first = region, None
        members = [n for n in region.members if n is not region.z]
        self.importer = Importer(region.program(members))
        read = iter(self.importer.values[1:])
        self.values: dict[Node, Ref | Input] = {region.z: self.importer.values[0]}  # type: ignore[dict-item]
        for node in members:
            source = node.args[0] if is_view(node) else None
            value = self.values.get(source, "") if isinstance(source, Node) else next(read)
            reason = value if isinstance(value, str) else layer_reason(region, node)
            unread = any(i not in self.values for i in region.members[node].inputs)
            if reason is None and not unread and not isinstance(value, str):
                self.values[node] = value
            elif self.first is None and reason:
                self.first = NoMatch(composite([node]) or reason, node)

    def exits(self) -> Iterator[Node]:
        """Nodes whose values may be a site's result, those with the most operators behind first.

        What is read is used elsewhere at one of them, or passes one of them on every way.
        """
        dtype = dtype_of(self.region.z)
        passed: set[Node] = set()
        for node in self.values:
            users = self.region.facts.users_in_phase(node)
            if any(user not in self.values for user in users):
                passed.update(self.region.chain(self.region.behind(node)))
        found = [n for n in passed if dtype_of(n) is dtype and self._ends_in(n, dtype)]
        return iter(sorted(sorted(found), key=self._size, reverse=True))

    def _ends_in(self, node: Node, dtype: torch.dtype | None) -> bool:
        """Whether ``node`` computes, or casts what was computed back to ``dtype``."""
        if node is self.region.z or is_view(node):
            return False
        if not is_identity(node):
            return True
        computed = any(not is_identity(n) for n in self.region.behind(node))
        return computed and dtype_of(node.args[0]) is not dtype  # type: ignore[arg-type]

    def _size(self, node: Node) -> int:
        return sum(not is_identity(n) for n in self.region.behind(node))

    def unfinished(self, reasons: list[NoMatch]) -> list[NoMatch]:
        """``reasons``, or that what was read never comes back to z's dtype."""
        computing = [n for n in self.values if n is not self.region.z and not is_identity(n)]
        if reasons or not computing:
            return reasons
        wide, ours = (dtype_name(dtype_of(n)) for n in (computing[-1], self.region.z))
        reason = f"the result stays in {wide}, the Linear computes in {ours}"
        return [NoMatch(reason, computing[-1])]


# --- a site ---------------------------------------------------------------------------------------


def _site(readable: _Readable, anchor: Anchor, exit_: Node, numerics: str) -> Match | NoMatch:
    """The site whose result is that of ``exit_``."""
    region, z = readable.region, anchor.z
    inside = region.behind(exit_)
    written = _written(readable, exit_, inside, numerics)
    if isinstance(written, str):
        return NoMatch(written, exit_)
    program = region.program(inside)
    dtype: torch.dtype = z.meta["val"].dtype
    difference = None
    for epilogue in (_canonical(written, dtype, numerics), written):
        if not epilogue.nodes:
            return NoMatch(f"{NOTHING}: a factor of 1 changes nothing", exit_)
        difference = validate(program, epilogue, dtype)
        if difference is None and numerics == "accurate":
            difference = validate_arithmetic(program, epilogue, dtype)
        if difference is None:
            break
    if difference is not None:
        return NoMatch(difference, exit_)
    epilogue, operands = compact(epilogue)
    nodes = tuple(region.operands[operand.index] for operand in operands)
    if any(map(has_a_place, region.facts.late(nodes, z))):
        return NoMatch("a run-time scalar is drawn at random behind the Linear", exit_)
    return Match(anchor, exit_, epilogue, nodes, tuple(inside), _views(region, exit_))


def _written(
    readable: _Readable, exit_: Node, inside: Sequence[Node], numerics: str
) -> Epilogue | str:
    """What ``inside`` computes, as it is written, or why that is no epilogue."""
    if numerics == "bitwise":
        return bitwise.written(readable.region, inside)
    try:
        return readable.importer.builder.finish(readable.values[exit_])
    except ValueError as error:  # more than a kernel takes
        return str(error)


@lru_cache(maxsize=4096)
def _canonical(epilogue: Epilogue, dtype: torch.dtype, numerics: str) -> Epilogue:
    """The same function in one spelling, with macros, and fewer or cheaper operations."""
    if numerics == "bitwise":
        return epilogue
    site = DType.of(dtype)
    assert site is not None, "a GEMM's dtype is one of the table's"
    return fold(recognise(epilogue, site), Site(site))


def _views(region: Region, node: Node) -> tuple[Node, ...]:
    """The views on the way from z to ``node``; all ways have the same."""
    views: list[Node] = []
    while node is not region.z:
        if is_view(node):
            views.append(node)
        node = region.members[node].inputs[0]
    return tuple(views[::-1])
