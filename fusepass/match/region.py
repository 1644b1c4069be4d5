"""Region: the pointwise nodes that hang off a pre-activation.

Views commute with pointwise operators, and casts between the site's dtype and the one it computes
in lose nothing of z: both belong to the region and compute the identity. What loses something of z,
a cast to bool for one, does not belong.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.fx import Node

from ..ir import Input
from ..ir.epilogue import MAX_OPERANDS
from ..op.cpu import compute_dtype
from . import operands
from .facts import (
    Graph,
    dtype_name,
    dtype_of,
    is_identity,
    is_pointwise,
    is_view,
    numel_is_one,
    packet,
    shape_of,
    tensor,
)
from .heads import Heads, Rotation, heads_that_read, rotation_of
from .member import Member, becomes_bool
from .order import lie_alike, shows_order
from .parts import forget_unjoined, joined_by, part_of
from .program import Program, Value, represents
from .region_steps import Writer

aten = torch.ops.aten

_RESHAPES = (aten.view, aten._unsafe_view, aten.reshape, aten.squeeze, aten.unsqueeze)
# Views that leave the elements of each row in order.
_SAME = (aten.alias, aten.clone, aten.detach)  # which leave the shape, too
_NAMES = (*_RESHAPES, *_SAME)


class Region:
    """The pointwise nodes behind ``z``; it may branch and rejoin.

    They are of z's own part of the graph: of the forward, or of the backward.

    Attributes:
        members: the nodes, z among them, in order.
        aside: nodes that it computes of operands alone.
        operands: what it reads beside z, as far as ``program`` has met it.
        shape: [..., N], that beside which rows and matrices are read; None if none are.
        heads: how z is seen where matrices of one head are read.
        by_heads: these matrices.
        rotations: by the member that is the result.
        joins_of_heads: the members that join parts of each head.

    Args:
        facts: of the graph.
        z: the pre-activation.
        tensors: whether it reads tensors of more than one element beside z.
        z1: that of a second GEMM, of which the region's nodes may be functions, too.
    """

    def __init__(self, facts: Graph, z: Node, tensors: bool = True, z1: Node | None = None) -> None:
        self.facts, self.z, self.tensors = facts, z, tensors
        self.roots = (z,) if z1 is None else (z, z1)
        self.operands: dict[Input, Node] = {}
        self.aside: set[Node] = set()
        self.shape: operands.Shape | None = None
        self.heads: Heads | None = None
        self.by_heads: set[Node] = set()
        self.rotations: dict[Node, Rotation] = {}
        self.joins_of_heads: set[Node] = set()
        self.members = {root: Member((), (), True) for root in self.roots}
        self._tensors: set[Node] = set()
        self._grow()
        forget_unjoined(self)
        self._take_aside()

    def _grow(self) -> None:
        pending = [u for root in self.roots for u in self.facts.users_in_phase(root)]
        heapq.heapify(pending)  # nodes compare by their place in the graph
        while pending:
            node = heapq.heappop(pending)
            if node in self.members:
                continue
            member = self._identity(node) if is_identity(node) else self._pointwise(node)
            found = rotation_of(self, node) if member is None else None
            if found is not None and found.node not in self.members:
                of = self.members[found.of]
                node, member = found.node, Member((found.of,), of.view, False, part=of.part)
                self.rotations[node] = found
            member = member or self._of_a_head(node)
            if member is None:
                continue
            self.members[node] = member
            for user in self.facts.users_in_phase(node):
                heapq.heappush(pending, user)

    def _of_a_head(self, node: Node) -> Member | None:
        """``node`` as some columns of each head, or as what joins them with the others."""
        part, inputs = part_of(self, node), joined_by(self, node)
        if part is not None:
            inputs = (node.args[0],)  # type: ignore[assignment]
        elif inputs is None or not self._wide(node):
            return None
        else:
            self.joins_of_heads.add(node)
        return Member(inputs, self.members[inputs[-1]].view, False, part=part)  # type: ignore[index, arg-type]

    def _identity(self, node: Node) -> Member | None:
        source = self.members.get(node.args[0])  # type: ignore[arg-type]
        if source is None or not self._wide(node) or becomes_bool(node):
            return None
        inputs = (node.args[0],)
        if source.part is not None and is_view(node) and packet(node) not in _SAME:
            return None  # it has fewer columns than z there
        if source.moved and shows_order(node):
            return None
        if not is_view(node):
            return replace(source, inputs=inputs)  # type: ignore[arg-type]
        kept = packet(node) in _NAMES and shape_of(node)[-1:] == shape_of(self.z)[-1:]
        if packet(node) is aten.clone:
            kept = kept and lie_alike(node.args[0], node)  # type: ignore[arg-type]
        view = source.view
        if packet(node) not in _SAME or not kept:
            view = (*view, (node.target, str(node.args[1:])))
        in_rows = source.in_rows and kept
        return replace(source, inputs=inputs, view=view, in_rows=in_rows)  # type: ignore[arg-type]

    def _pointwise(self, node: Node) -> Member | None:
        if not is_pointwise(node):
            return None
        inputs = tuple(i for i in node.all_input_nodes if i in self.members)
        views = {self.members[i].view for i in inputs}
        same = all(shape_of(i) == shape_of(node) for i in inputs)
        parts = {self.members[i].part for i in inputs}
        if len(views) != 1 or len(parts) != 1 or not same or not self._wide(node):
            return None
        others = [i for i in node.all_input_nodes if i not in self.members]
        others = [i for i in others if not self._is_scalar(i)]
        in_rows = all(self.members[i].in_rows for i in inputs)
        if others and not (self._read if in_rows else self._read_by_heads)(node, others):
            return None
        # By heads it is the result's order alone that counts.
        told = bool(others and in_rows) or any(self.members[i].moved for i in inputs)
        moved = told and self._is_moved(node, inputs)
        if moved and shows_order(node):
            return None
        return Member(inputs, views.pop(), in_rows, moved, parts.pop())

    def _is_moved(self, node: Node, inputs: Sequence[Node]) -> bool:
        """Whether ``node``, computed of these members, lies in another order than z."""
        as_z = next((i for i in inputs if not self.members[i].moved), None)
        return as_z is None or not lie_alike(as_z, node)

    def _wide(self, node: Node) -> bool:
        """Whether ``node`` holds all of z's values, in a dtype no wider than the op computes in."""
        z, value = tensor(self.z), tensor(node)
        if z is None or value is None or value.device != z.device:
            return False
        if value.dtype is torch.bool:
            return True
        return represents(value.dtype, z.dtype) and represents(self._compute, value.dtype)

    @property
    def _compute(self) -> torch.dtype:
        return compute_dtype(self.z.meta["val"].dtype)

    # --- what is read beside z --------------------------------------------------------------------

    def _is_scalar(self, node: Node) -> bool:
        if isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat)):
            return True
        return self.facts.constant(node) is not None or self.is_operand(node)

    def is_operand(self, node: Node) -> bool:
        """One real floating element that is known before z, or at least without it."""
        if not self._is_number(node):
            return False
        return not any(self.facts.depends_on(node, root) for root in self.roots)

    def _is_number(self, node: Node) -> bool:
        value = tensor(node)
        return value is not None and numel_is_one(node) and operands.is_scalar(value, self._compute)

    def why_not(self, node: Node, other: Node) -> str | None:
        """Why ``node`` may not read ``other`` beside z, in words that follow its name, or None."""
        shape = shape_of(node)
        if numel_is_one(other):
            dtype = dtype_of(other)
            wide = dtype is not None and dtype.is_floating_point and not self._is_number(other)
            if wide:
                return f"takes a scalar of {dtype_name(dtype)}, which makes the result wider"
            return "takes a scalar that is no float or comes from the Linear itself"
        if not self.tensors:
            return "takes another tensor, which differs by element"
        for root in self.roots:
            reason = operands.why_not(self.facts, other, root, shape)
            if reason is not None:
                return reason
        inside = [i for i in node.all_input_nodes if i in self.members]
        if inside and self._is_moved(node, inside) and shows_order(node):
            return "takes a tensor of another order in memory, which the result has, too"
        if operands.tells_rows(other, shape) and self.shape not in (None, shape):
            return "takes a tensor of another shape than one before"
        return None

    def _read(self, node: Node, others: list[Node]) -> bool:
        """Whether ``node`` may read ``others``, tensors of several elements."""
        shape = shape_of(node)
        if not isinstance(shape[-1], int) or any(self.why_not(node, o) for o in others):
            return False
        if len(self._tensors.union(others)) > MAX_OPERANDS["mat"]:
            return False
        if any(operands.tells_rows(i, shape) for i in others):
            self.shape = shape
        self._tensors.update(others)
        return True

    def _read_by_heads(self, node: Node, others: list[Node]) -> bool:
        """Whether ``node``, which sees z by heads, may read ``others``: matrices of one head."""
        heads = heads_that_read(self, node, others) if self.tensors else None
        if heads is None:
            return False
        self.heads, self.shape = heads, shape_of(heads.whole)
        self.by_heads.update(others)
        return True

    def _take_aside(self) -> None:
        """Decides what is computed of operands alone: not so much that they become too many."""
        shape = self.shape or shape_of(self.z)
        taken = operands.aside(self.facts, self._tensors, shape, self.members, self._compute)
        leaves = operands.leaves(self.facts, taken) | (self._tensors - taken)
        if len(leaves) <= MAX_OPERANDS["mat"]:
            self.aside = taken

    # --- parts of it ------------------------------------------------------------------------------

    def behind(self, end: Node) -> list[Node]:
        """The region's nodes that ``end`` needs, in order, ``end`` among them and no root."""
        return sorted(self._needed(end).difference(self.roots))

    def joins(self, end: Node) -> bool:
        """Whether ``end`` needs every root."""
        return self._needed(end).issuperset(self.roots)

    def _needed(self, end: Node) -> set[Node]:
        seen, pending = set[Node](), [end]
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                pending.extend(self.members[node].inputs)
        return seen

    def chain(self, nodes: Sequence[Node]) -> list[Node]:
        """z and every one of ``nodes`` that all paths from a root to the last one pass, in order.

        Args:
            nodes: as ``behind`` has them.
        """
        order = [*self.roots, *nodes]
        place = {node: i for i, node in enumerate(order)}
        chain, reach = [self.z], 0
        for i, node in enumerate(order):
            if i and reach <= i:
                chain.append(node)
            users = [*node.users, *(n for n, r in self.rotations.items() if r.of is node)]
            reach = max([reach, *(place[u] for u in users if u in place)])
        return chain

    def program(self, nodes: Sequence[Node], start: Node | None = None) -> Program:
        """``nodes`` as a function of z's or ``start``'s value, all but views: these move elements.

        Each other node is a step, in order; what it computes of operands alone stands before it.
        """
        return self.written(nodes, start)[0]

    def written(
        self, nodes: Sequence[Node], start: Node | None = None
    ) -> tuple[Program, dict[Node, Value | Input]]:
        """As ``program``, and which value each node is, or, of z1, which input."""
        writer = Writer(self, start or self.z)
        for node in nodes:
            writer.write(node)
        return tuple(writer.steps), writer.values
