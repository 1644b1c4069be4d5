"""Heads: a Linear's result seen as heads of columns, and what exchanges the halves of each.

RoPE (rotary embedding) is ``z * cos + rot * sin``, of z as [B, H, S, D] and tables [B, 1, S, D]:
rot is z with the halves of each head, or neighbours, exchanged, and one of the two negated. It may
be of the first columns of each head alone (parts.py).
"""

from __future__ import annotations

import heapq
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node
from torch.utils._python_dispatch import _disable_current_modes

from ..ir.epilogue import MAX_OPERANDS
from ..ir.reference import rotated
from . import operands
from .facts import Graph, dtype_of, is_identity, is_view, packet, shape_of
from .order import lie_alike, shows_order

if TYPE_CHECKING:
    from .region import Region

aten = torch.ops.aten

_RESHAPES = (aten.view, aten._unsafe_view, aten.reshape)
_SAME = (aten.alias, aten.detach)
# Which of their arguments is a dimension, and how many more their result has.
_ALONG: dict[Any, tuple[int, int]] = {
    aten.slice: (1, 0),
    aten.split: (2, 0),
    aten.split_with_sizes: (2, 0),
    aten.cat: (1, 0),
    aten.unsqueeze: (1, 1),
}
_ANYWHERE = (aten.neg, aten.clone)
_MOST = MAX_OPERANDS["mat"]
_FAR = 16  # nodes of one exchange


@dataclass(frozen=True)
class Heads:
    """How a value sees z: as [*rows, H, D] of [*rows, N], its dimensions in another order.

    Attributes:
        whole: the node of [*rows, N].
        seen: the view of it.
        order: which dimension of [*rows, H, D] each of the view's is; D is the last one.
    """

    whole: Node
    seen: Node
    order: tuple[int, ...]

    def are_read(self, operand: Node, columns: int) -> bool:
        """Whether ``operand``, which broadcasts with ``columns`` of the view, is the same for all
        heads, and has numbers of its own for each of these."""
        rank, own = len(self.order), shape_of(operand)
        sizes = (1,) * (rank - len(own)) + own
        return sizes[self.order.index(rank - 2)] == 1 and sizes[-1] == columns


def heads_of(region: Region, node: Node) -> Heads | None:
    """How ``node``, one of ``region``, sees z by heads; None if it does not."""
    members = region.members
    while members[node].inputs and (not is_view(node) or node in region.rotations):
        node = members[node].inputs[0]
    while packet(node) in _SAME:
        node = node.args[0]  # type: ignore[assignment]
    seen, order = node, list(range(len(shape_of(node))))
    while packet(node) is aten.permute:
        dims: Any = node.args[1]
        order = [int(dims[i]) % len(order) for i in order]
        node = node.args[0]  # type: ignore[assignment]
    whole = node.args[0] if packet(node) in _RESHAPES else None
    if not isinstance(whole, Node) or not members[whole].in_rows:
        return None
    rank, sizes = len(order), shape_of(node)
    split = sizes[:-2] == shape_of(whole)[:-1] and all(isinstance(s, int) for s in sizes[-2:])
    return Heads(whole, seen, tuple(order)) if split and order[-1] == rank - 1 else None


def heads_that_read(region: Region, node: Node, others: Sequence[Node]) -> Heads | None:
    """How ``node``, one that is to be the region's, sees z, if it may read ``others`` beside it:
    matrices that are the same for all heads."""
    heads = heads_of(region, next(i for i in node.all_input_nodes if i in region.members))
    if heads is None or region.heads not in (None, heads):
        return None
    shape = shape_of(node)
    if region.shape not in (None, shape_of(heads.whole)):
        return None
    if not all(heads.are_read(other, shape[-1]) for other in others):
        return None
    wrong = (operands.why_not(region.facts, o, r, shape) for o in others for r in region.roots)
    return heads if not any(wrong) and len(region.by_heads.union(others)) <= _MOST else None


@dataclass(frozen=True)
class Rotation:
    """An exchange.

    Attributes:
        of: what is exchanged, by heads.
        node: the result.
        columns: of which the halves are exchanged: those of ``of``, or 2.
        parts: the nodes on the way.
    """

    of: Node
    node: Node
    columns: int
    parts: tuple[Node, ...]


def rotation_of(region: Region, node: Node) -> Rotation | None:
    """The exchange of columns of z, seen by heads, that ``node`` begins."""
    if not may_turn(region):
        return None
    of = next((i for i in node.all_input_nodes if i in region.members), None)
    if of is None or not is_seen_by_heads(region, of):
        return None
    return _rotation(region.facts, of)


def may_turn(region: Region) -> bool:
    """Whether columns of heads may be exchanged in it: of one product, without a backward."""
    return not region.facts.has_backward and region.tensors and len(region.roots) == 1


def is_seen_by_heads(region: Region, node: Node) -> bool:
    """Whether ``node`` is z, or some columns of each head of it, and nothing that is computed."""
    if heads_of(region, node) is None:
        return False
    members, rotations = region.members, region.rotations
    behind = region.behind(node)
    return all((is_identity(n) or members[n].part) and n not in rotations for n in behind)


def parts_of(region: Region) -> set[Node]:
    """The nodes on the way to the results of its rotations."""
    return {part for found in region.rotations.values() for part in found.parts}


def shows_another_order(region: Region, node: Node) -> bool:
    """Whether it matters that ``node``, which is seen by heads, does not lie as z does there."""
    heads = heads_of(region, node) if region.rotations else None
    return heads is not None and not lie_alike(heads.seen, node) and shows_order(node)


def _rotation(facts: Graph, source: Node) -> Rotation | None:
    """The first exchange of the columns of ``source``, [..., D], however it is spelled: its own
    operators are run on D numbers."""
    rows, made = shape_of(source)[:-1], list[Node]()
    pending = list(facts.users_in_phase(source))
    heapq.heapify(pending)  # nodes compare by their place in the graph
    while pending and len(made) < _FAR:
        node = heapq.heappop(pending)
        known = all(i is source or i in made for i in node.all_input_nodes)
        if node in made or not known or not _moves_columns(node, rows):
            continue
        made.append(node)
        if shape_of(node) == shape_of(source) and dtype_of(node) is dtype_of(source):
            steps = _behind(node, source)
            head = _head(_spelling(steps, source, len(rows)), len(rows), shape_of(source)[-1])
            if head:
                return Rotation(source, node, head, tuple(n for n in steps if n is not node))
        for user in facts.users_in_phase(node):
            heapq.heappush(pending, user)
    return None


def _behind(node: Node, source: Node) -> list[Node]:
    """``node`` and what it is made of behind ``source``, in order."""
    found, pending = set[Node](), [node]
    while pending:
        current = pending.pop()
        if current is not source and current not in found:
            found.add(current)
            pending.extend(current.all_input_nodes)
    return sorted(found)


def _moves_columns(node: Node, rows: Sequence[Any]) -> bool:
    """Whether ``node`` moves or negates numbers of each row, of dimensions ``rows``, by itself."""
    kind = packet(node)
    if node.target is operator.getitem or kind in _ANYWHERE:
        return True
    if node.kwargs:  # which would not be run
        return False
    if kind in _RESHAPES:
        sizes: Any = node.args[1]
        return list(sizes[: len(rows)]) == list(rows)
    if kind not in _ALONG:
        return False
    place, more = _ALONG[kind]
    dim = node.args[place] if len(node.args) > place else 0
    rank = len(shape_of(node.all_input_nodes[0])) + more
    return isinstance(dim, int) and dim % rank >= len(rows)


Spelled = tuple[tuple[Any, tuple[Any, ...]], ...]


def _spelling(steps: Collection[Node], source: Node, rows: int) -> Spelled:
    """``steps`` as operators and arguments, of a source whose ``rows`` dimensions are 1; a string
    names a value."""
    names = {source: "0", **{node: str(i + 1) for i, node in enumerate(steps)}}

    def written(arg: Any) -> Any:
        if isinstance(arg, Node):
            return names.get(arg)
        return tuple(map(written, arg)) if isinstance(arg, (list, tuple)) else arg

    found = []
    for node in steps:
        args = tuple(map(written, node.args))
        if packet(node) in _RESHAPES:
            args = (args[0], (1,) * rows + args[1][rows:])
        found.append((node.target, args))
    return tuple(found)


@lru_cache(maxsize=256)
def _head(steps: Spelled, rows: int, width: int) -> int:
    """The columns of which ``steps`` exchange the halves, of rows of ``width``; 0 if of none."""
    with _disable_current_modes():
        # Each number tells where it comes from: the operators move and negate, and do no more.
        source = torch.arange(1.0, width + 1, dtype=torch.float64).view(*[1] * rows, width)
        values: dict[str, Any] = {"0": source}

        def given(arg: Any) -> Any:
            if isinstance(arg, str):
                return values[arg]
            return [given(a) for a in arg] if isinstance(arg, tuple) else arg

        for i, (target, args) in enumerate(steps):
            values[str(i + 1)] = target(*map(given, args))
        result = values[str(len(steps))]
        for head in (width, 2) if width % 2 == 0 else ():
            if torch.equal(result, rotated(source, head)):
                return int(head)
    return 0
