"""Gated: two GEMMs of one x whose results meet in one epilogue, ``silu(x Wg^T) * (x Wu^T)``.

They are two GEMMs of the graph, or the halves of one GEMM's columns. Pure, as ``match`` is.
"""

from __future__ import annotations

import heapq
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch.fx import Node

from ..ir import Z1, Epilogue, Z
from ..ir.operands import replaced
from ..ir.types import Arg
from .anchor import Anchor, read_anchor
from .epilogues import Match, match
from .facts import (
    Graph,
    dtype_of,
    has_a_place,
    is_awaited,
    numel_is_one,
    origin,
    packet,
    shape_of,
    tensor,
)
from .gemms import made_of, passes

aten = torch.ops.aten

_FAR = 64  # nodes behind a product that a search for another one visits


def match_gated(
    facts: Graph,
    gemm: Node,
    others: Sequence[Node],
    numerics: str,
    objection: Callable[[Match], str | None],
) -> Match | None:
    """The site that ``gemm`` makes with one of ``others``, or of its halves; none if bitwise.

    Args:
        facts: of the graph as it is.
        gemm: an ``mm`` or ``addmm``.
        others: further ones, of which no site has been made.
        numerics: ``accurate`` or ``bitwise``.
        objection: why a site is not to be, though it is right.
    """
    if numerics != "accurate":
        return None
    anchor = read_anchor(facts, gemm, numerics)
    for first, second in _pairs(facts, anchor, others, numerics):
        found = match(facts, first, numerics, objection, second)
        if isinstance(found, Match):
            return _in_the_shorter_order(found)
    return None


def _pairs(
    facts: Graph, anchor: Anchor, others: Sequence[Node], numerics: str
) -> Iterator[tuple[Anchor, Anchor]]:
    halves = _halves(facts, anchor)
    if halves is not None:
        yield halves
        return
    for gemm in _met(facts, anchor.z, others):
        if _alike(facts, anchor.gemm, gemm):
            second = read_anchor(facts, gemm, numerics)
            if second.blocked is None and _stand_together(facts, anchor, second):
                yield anchor, second


# --- two GEMMs ------------------------------------------------------------------------------------


def _met(facts: Graph, z: Node, gemms: Sequence[Node]) -> list[Node]:
    """Those of ``gemms`` with whose results what is computed of ``z`` alone first meets."""
    found, inside = set[Node](), {z}
    pending = facts.users_in_phase(z)
    heapq.heapify(pending)  # nodes compare by their place in the graph
    while pending and len(inside) < _FAR:
        node = heapq.heappop(pending)
        if node in inside or not passes(node):
            continue
        tensors = [i for i in node.all_input_nodes if tensor(i) is not None and not numel_is_one(i)]
        beside = [i for i in tensors if i not in inside and facts.constant(i) is None]
        if beside:
            found.update(n for i in beside for n in made_of(i) if n in gemms)
            continue
        inside.add(node)
        for user in facts.users_in_phase(node):
            heapq.heappush(pending, user)
    return sorted(found)


def _stand_together(facts: Graph, one: Anchor, other: Anchor) -> bool:
    """Whether what both multiply and add is there, or can be, in front of the first result."""
    place = min(one.z, other.z)
    read = [n for a in (one, other) for n in (a.x, a.kn, a.bias) if n is not None]
    late = facts.late(read, place)
    return place not in late and not any(has_a_place(n) or is_awaited(n) for n in late)


def _alike(facts: Graph, gemm: Node, other: Node) -> bool:
    """Whether both multiply the same x, by matrices of one shape, in one part of the graph."""
    (x, kn), (x1, kn1) = _matrices(gemm), _matrices(other)
    same = dtype_of(gemm) is dtype_of(other) and shape_of(kn) == shape_of(kn1)
    return same and origin(x) == origin(x1) and (gemm in facts.forward) == (other in facts.forward)


def _matrices(gemm: Node) -> tuple[Node, Node]:
    x, kn = gemm.args[-2:]
    assert isinstance(x, Node) and isinstance(kn, Node), "mm and addmm end in two matrices"
    return x, kn


# --- halves of one GEMM ---------------------------------------------------------------------------


def _halves(facts: Graph, anchor: Anchor) -> tuple[Anchor, Anchor] | None:
    """The GEMMs that make the first and the last half of the columns, if only these are used."""
    width = shape_of(anchor.gemm)[1]
    if not isinstance(width, int) or width % 2 or anchor.views:
        return None  # with reshapes between product and bias no model was met
    views, last = list[Node](), anchor.z
    while len(last.users) == 1 and _keeps_columns(user := next(iter(last.users)), width):
        views.append(user)
        last = user
    parts = _parts(last, width)
    if sorted(parts.values()) != [(0, width // 2), (width // 2, width)]:
        return None
    first, second = (
        replace(anchor, z=part, views=tuple(views), columns=parts[part])
        for part in sorted(parts, key=parts.__getitem__)
    )
    return first, second


def _keeps_columns(node: Node, width: int) -> bool:
    """Whether ``node`` is a reshape to sizes that end in ``width``, said as a number."""
    if packet(node) not in (aten.view, aten._unsafe_view, aten.reshape):
        return False
    sizes = node.args[1]
    return isinstance(sizes, (list, tuple)) and sizes[-1:] == [width]


def _parts(node: Node, width: int) -> dict[Node, tuple[int, int]]:
    """The columns that users of ``node`` are views of; empty if one is anything else, or is
    returned: that is a view then, too."""
    parts: dict[Node, tuple[int, int]] = {}
    for user in node.users:
        found = _slice(user, width) or _split(user, width)
        if not found or any(u.op == "output" for part in found for u in part.users):
            return {}
        parts.update(found)
    return parts


def _slice(node: Node, width: int) -> dict[Node, tuple[int, int]]:
    if node.target is not aten.slice.Tensor or len(node.args) < 4:
        return {}
    _, dim, start, end, *step = node.args
    ends = isinstance(start, int) and isinstance(end, int)
    if step not in ([], [1]) or not ends or dim not in (-1, len(shape_of(node)) - 1):
        return {}
    return {node: (start % width if start < 0 else start, min(end, width))}  # type: ignore[operator,type-var,dict-item]


def _split(node: Node, width: int) -> dict[Node, tuple[int, int]]:
    if packet(node) not in (aten.split, aten.split_with_sizes) or len(node.args) != 3:
        return {}
    source, sizes, dim = node.args
    if not isinstance(source, Node) or dim not in (-1, len(shape_of(source)) - 1):
        return {}
    half = width // 2
    if sizes not in (half, [half, half]):
        return {}
    items = {u: u.args[1] for u in node.users if u.target is operator.getitem}
    return {user: (0, half) if index == 0 else (half, width) for user, index in items.items()}


# --- which of both is z ---------------------------------------------------------------------------


def _in_the_shorter_order(found: Match) -> Match:
    """The same, with z and z1 exchanged if its text is then shorter: ``silu mul(z1)``."""
    assert found.second is not None
    exchanged = _exchanged(found.epilogue)
    if (len(str(exchanged)), str(exchanged)) >= (len(str(found.epilogue)), str(found.epilogue)):
        return found
    return replace(found, anchor=found.second, second=found.anchor, epilogue=exchanged)


def _exchanged(epilogue: Epilogue) -> Epilogue:
    other: dict[Arg, Arg] = {Z: Z1, Z1: Z}
    return replaced(epilogue, lambda arg: other.get(arg, arg))
