"""Parts: some columns of each head of a Linear's result, of which alone something is computed.

RoPE of a part of a head is ``cat([rope(q[..., :R]), q[..., R:]], -1)``: the columns behind the R
first ones are what they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from .facts import dtype_of, packet, shape_of
from .heads import is_seen_by_heads, may_turn

if TYPE_CHECKING:
    from .region import Region

aten = torch.ops.aten


@dataclass(frozen=True)
class Part:
    """Some columns of each head.

    Attributes:
        start, end: from which to which.
        head: how many a head has.
    """

    start: int
    end: int
    head: int

    @property
    def columns(self) -> int:
        """How many they are."""
        return self.end - self.start


def part_of(region: Region, node: Node) -> Part | None:
    """Which columns of z's heads ``node`` is, if they are the first of what is later joined with
    the others again, or are these others."""
    part = _sliced(node) if may_turn(region) else None
    source = node.args[0] if part is not None else None
    if part is None or not isinstance(source, Node) or source not in region.members:
        return None
    if region.members[source].part is not None or not is_seen_by_heads(region, source):
        return None
    beside = [n for n in region.facts.users_in_phase(source) if _meet(_sliced(n), part)]
    firsts, others = (beside, [node]) if part.start else ([node], beside)
    for rest in others:
        for join in region.facts.users_in_phase(rest):
            computed, last = _halves(join) or (None, None)
            if computed is None or last is not rest:
                continue
            if any(region.facts.depends_on(computed, first) for first in firsts):
                return part
    return None


def joined_by(region: Region, node: Node) -> tuple[Node, Node] | None:
    """What ``node`` joins: something that is computed of the first columns of each head, and the
    others as they were; None if it is no such thing."""
    computed, rest = _halves(node) or (None, None)
    if computed not in region.members or rest not in region.members:
        return None
    assert computed is not None and rest is not None
    first, others = (region.members[n].part for n in (computed, rest))
    if first is None or others is None or dtype_of(computed) is not dtype_of(rest):
        return None
    whole = (first.start, first.end, others.end) == (0, others.start, first.head)
    plain = is_seen_by_heads(region, rest) and packet(rest) is aten.slice
    return (computed, rest) if whole and plain and first.head == others.head else None


def forget_unjoined(region: Region) -> None:
    """Takes parts out of a region that nothing in it joins again."""
    joined = {n for join in region.joins_of_heads for n in region.behind(join)}
    parts = [n for n, m in region.members.items() if m.part is not None]
    if joined.issuperset(parts):
        return
    dropped = {*parts, *region.joins_of_heads}
    for node, member in region.members.items():
        if not dropped.isdisjoint(member.inputs):
            dropped.add(node)
    for node in dropped:
        del region.members[node]
        region.rotations.pop(node, None)
    region.joins_of_heads.clear()


def _sliced(node: Node) -> Part | None:
    """The columns that ``node`` is of the last dimension of what it is a slice of."""
    if node.target is not aten.slice.Tensor or len(node.args) < 4 or not shape_of(node):
        return None
    source, dim, start, end, *step = node.args
    width = shape_of(source)[-1]  # type: ignore[arg-type]
    known = all(isinstance(i, int) for i in (dim, start, end, width))
    if not known or step not in ([], [1]) or dim % len(shape_of(node)) != len(shape_of(node)) - 1:  # type: ignore[operator]
        return None
    first = start + width * (start < 0)  # type: ignore[operator]
    return Part(first, first + shape_of(node)[-1], width)


def _meet(one: Part | None, other: Part) -> bool:
    """Whether both together are a whole head."""
    if one is None or one.head != other.head:
        return False
    first, last = sorted((one, other), key=lambda part: part.start)
    return (first.start, first.end, last.end) == (0, last.start, last.head)


def _halves(node: Node) -> tuple[Node, Node] | None:
    """The two tensors that ``node`` joins by columns."""
    if packet(node) is not aten.cat or len(node.args) < 2:
        return None
    nodes, dim = node.args[:2]
    columns = isinstance(dim, int) and dim % len(shape_of(node)) == len(shape_of(node)) - 1
    if not columns or not isinstance(nodes, (list, tuple)) or len(nodes) != 2:
        return None
    first, second = nodes
    return (first, second) if isinstance(first, Node) and isinstance(second, Node) else None
