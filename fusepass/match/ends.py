"""Ends: the values of a region that are used outside of it, and which of them a site computes.

What the site leaves is Inductor's, which reads z for it, so that z must be written. Which results
are worth it is a matter of bytes: those that the op moves, and those that Inductor moves behind it.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.fx import Node

from ..ir.epilogue import MAX_OUTPUTS
from . import operands
from .facts import dtype_of, is_fusible, is_identity, is_view, packet, shape_of
from .heads import parts_of
from .readable import Readable
from .region import Region

aten = torch.ops.aten

# Inductor reads what they take where that lies.
_PARTS = (aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.expand)

_MOST = 5  # further results among which the cheapest are looked for


@dataclass(frozen=True)
class End:
    """A result of a site.

    Attributes:
        node: whose users take it.
        value: the region's node that it is; of a sum over the rows, the one that is summed.
        views: those that follow the op's result on the way to ``node``, in order.
    """

    node: Node
    value: Node
    views: tuple[Node, ...] = ()

    @property
    def is_sum(self) -> bool:
        """Whether it is one number a column."""
        return self.node is not self.value


def dead_with(ends: Collection[Node], inside: Sequence[Node]) -> set[Node]:
    """Those of a site's nodes that nothing needs once the users of ``ends`` have its results.

    Args:
        ends: the nodes whose results the site has.
        inside: all its nodes behind z, in order.
    """
    own, dead = set(inside), set[Node]()
    for node in reversed(inside):
        if all(u in dead or (node in ends and u not in own) for u in node.users):
            dead.add(node)
    return dead


def other_ends(readable: Readable, exit_: Node) -> list[tuple[End, ...]]:
    """Sets of ends that move less than that of ``exit_`` alone does, and than the product without
    an epilogue; those that move least first.

    Each set computes ``exit_``, or sums of what is computed of it alone.
    """
    ends = _Ends(readable, exit_)
    others = (ends.cost(some) for some in ((End(exit_, exit_),), ()))
    least = min((cost for cost in others if cost is not None), default=0)
    options = [*(ends.stores[:_MOST]), *ends.sums]
    found: list[tuple[int, int, tuple[End, ...]]] = []
    for count in range(1, len(options[: _MOST + 1]) + 1):
        for some in itertools.combinations(options[: _MOST + 1], count):
            cost = ends.cost(some) if ends.is_a_site(some) else None
            if cost is not None and cost < least:
                found.append((cost, len(found), some))
    return [some for _, _, some in sorted(found, key=lambda f: (f[0], len(f[2]), f[1]))]


class _Ends:
    """The uses of a region outside of it, and what they cost, in bytes an element of z.

    Attributes:
        stores: what may be written, ``exit_`` first.
        sums: the sums over all rows.
    """

    def __init__(self, readable: Readable, exit_: Node) -> None:
        self.readable, self.region, self.exit = readable, readable.region, exit_
        self.facts = self.region.facts
        self.sums: list[End] = []
        # Of each value that is used outside: by what, sums over the rows apart.
        self.uses: dict[Node, list[Node]] = {exit_: []}
        self.summed: dict[Node, list[Node]] = {}
        known = {*readable.values, *parts_of(self.region)}
        for node in readable.values:
            for user in self.facts.users_in_phase(node):
                if user not in known:
                    self._use(node, user)
        self.stores = [End(node, node) for node in self.uses if self._may_be_stored(node)]

    def _use(self, node: Node, user: Node) -> None:
        if is_row_sum(self.region, user, node):
            self.sums.append(End(user, node))
            self.summed.setdefault(self._ending(node), []).append(user)
        else:
            self.uses.setdefault(self._ending(node), []).append(user)

    def _computed(self, node: Node) -> Node:
        """The operator that ``node`` is a view of."""
        while is_view(node):
            node = node.args[0]  # type: ignore[assignment]
        return node

    def _ending(self, node: Node) -> Node:
        """What of ``node`` may be written: itself without views and casts that lose nothing."""
        end = node
        while is_identity(end) and not self.readable.ends_in(end):
            end = end.args[0]  # type: ignore[assignment]
        return end if self._may_be_stored(end) else self._computed(node)

    def _may_be_stored(self, node: Node) -> bool:
        return self.readable.ends_in(node)

    # --- a set of ends ----------------------------------------------------------------------------

    def is_a_site(self, ends: Sequence[End]) -> bool:
        """Whether it writes a matrix, and computes ``exit_`` for all that uses it."""
        stored = {end.node for end in ends if not end.is_sum}
        summed = {end.node for end in ends if end.is_sum}
        sums = self.summed.get(self.exit, ())
        covered = not self.uses[self.exit] and bool(sums) and summed.issuperset(sums)
        return bool(stored) and (self.exit in stored or covered)

    def cost(self, ends: Sequence[End]) -> int | None:
        """Bytes that are moved for an element; None if the op has not so many results."""
        inside = inside_of(self.region, ends)
        dead = dead_with({end.node for end in ends}, inside)
        roots = [r for r in self.region.roots if not all(u in dead for u in r.users)]
        if len(roots) + len(ends) > MAX_OUTPUTS:
            return None
        stored = {end.node for end in ends if not end.is_sum}
        summed = {end.node for end in ends if end.is_sum}
        cost = sum(map(self._size, [*stored, *roots])) + self._reads(inside)
        written = {v for v in self.uses if self._is_written(v)}.difference(stored, roots)
        read = {v for v in self.uses if any(map(self._is_inductors, self.uses[v]))}
        added = {v for v, sums in self.summed.items() if not summed.issuperset(sums)}
        cost += self._left(read | written, stored) + self._left(added, stored | written)
        return cost + sum(map(self._size, written))

    def _left(self, values: Collection[Node], stored: Collection[Node]) -> int:
        """Bytes that a kernel of Inductor's reads for ``values``: sums over rows have one of their
        own, which goes down the columns."""
        computed, read, pending = set[Node](), set[Node](), set(values)
        while pending:
            node = pending.pop()
            if node in stored or node in self.region.roots:
                read.add(node)
            elif node not in computed:
                computed.add(node)
                pending.update(self.region.members[node].inputs)
        return sum(map(self._size, read)) + self._reads(sorted(computed))

    def _is_written(self, value: Node) -> bool:
        """Whether ``value`` must be in memory, for what reads it is no code of Inductor's."""
        return not all(map(self._is_inductors, self.uses.get(value, ())))

    def _is_inductors(self, user: Node) -> bool:
        part = packet(user) in _PARTS or user.target is operator.getitem
        return is_fusible(user) or is_view(user) or part

    def _size(self, node: Node) -> int:
        dtype = dtype_of(node)
        return dtype.itemsize if dtype is not None else 0

    def _reads(self, inside: Sequence[Node]) -> int:
        """Bytes of the matrices that ``inside`` reads, each once."""
        return sum(map(self._size, self._matrices(inside)))

    def _matrices(self, inside: Sequence[Node]) -> set[Node]:
        found, pending = set[Node](), [(n, i) for n in inside for i in n.all_input_nodes]
        seen = set[Node]()
        while pending:
            beside, node = pending.pop()
            if node in self.region.members or node in seen:
                continue
            seen.add(node)
            if node in self.region.aside:
                pending.extend((beside, i) for i in node.all_input_nodes)
            elif shape_of(node) and operands.kind_of(node, self._shape) == "mat":
                found.add(node)
        return found

    @cached_property
    def _shape(self) -> tuple[Any, ...]:
        return self.region.shape or shape_of(self.region.z)


def inside_of(region: Region, ends: Sequence[End]) -> list[Node]:
    """A site's nodes behind z, in order; sums over rows and views on their way are among them, and
    the pieces of rotations.

    What follows a value that is written follows the op's result, so it is none of them.
    """
    stored = {end.node for end in ends if not end.is_sum}
    inside: set[Node] = set()
    for end in ends:
        node, way = end.value, set[Node]()
        while end.is_sum and is_identity(node) and node not in stored:
            way.add(node)
            node = node.args[0]  # type: ignore[assignment]
        inside.update((end.node, *region.behind(node)) if end.is_sum else region.behind(node))
        inside.update(way if node not in stored else ())
    rotations = (region.rotations[n].parts for n in inside if n in region.rotations)
    return sorted(inside.union(*rotations))


def is_row_sum(region: Region, node: Node, of: Node) -> bool:
    """Whether ``node`` is the sum of the region's ``of`` over all its dimensions but the last.

    Its rows must be z's, so that there is one sum for each of z's columns.
    """
    if not sums_rows(node) or node.args[0] is not of or not region.members[of].in_rows:
        return False
    summed, own = dtype_of(of), dtype_of(region.z)
    if summed is None or not summed.is_floating_point or not isinstance(shape_of(of)[-1], int):
        return False
    return dtype_of(node) in (summed, own, torch.float32)


def sums_rows(node: Node) -> bool:
    """Whether ``node`` sums over all dimensions but the last, which Inductor has a kernel for that
    computes nothing else."""
    source = node.args[0] if node.args else None
    if (
        node.target is not aten.sum.dim_IntList
        or len(node.args) < 2
        or not isinstance(source, Node)
    ):
        return False
    rank, dims = len(shape_of(source)), node.args[1]
    if rank < 2 or not isinstance(dims, (list, tuple)):
        return False
    return sorted(d % rank for d in dims) == list(range(rank - 1))  # type: ignore[operator]


def is_of(region: Region, node: Node, shape: operands.Shape | None) -> bool:
    """Whether ``node`` is, or is computed or seen of, a value of ``shape``."""
    while shape is not None and not (region.members[node].in_rows and shape_of(node) == shape):
        if node in region.roots:
            return False
        node = region.members[node].inputs[0]
    return True


def views_to(region: Region, node: Node, shape: operands.Shape | None) -> tuple[Node, ...]:
    """The views on the way from z, or from the last value of ``shape``, to ``node``.

    All ways have the same.
    """
    views: list[Node] = []
    while node not in region.roots:
        if shape is not None and region.members[node].in_rows and shape_of(node) == shape:
            break
        if is_view(node) and node not in region.rotations:
            views.append(node)
        node = region.members[node].inputs[0]
    return tuple(views[::-1])
