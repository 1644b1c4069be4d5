"""Region: the pointwise nodes that hang off a pre-activation.

Views commute with pointwise operators, and casts between the site's dtype and the one it computes
in lose nothing of z: both belong to the region and compute the identity. What loses something of z,
a cast to bool for one, does not belong.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from .cpu import compute_dtype
from .facts import (
    Graph,
    dtype_of,
    is_cast,
    is_identity,
    is_pointwise,
    is_view,
    numel_is_one,
    shape_of,
    tensor,
)
from .ir import Input
from .program import CAST, Arg, Program, Step, Symbolic, TensorConst, Value, represents


@dataclass
class Member:
    """A node of a region: ``inputs`` are the region's nodes it reads, ``view`` the views above."""

    inputs: tuple[Node, ...]
    view: tuple[Any, ...]


class Region:
    """The pointwise nodes whose only varying input is ``z``; it may branch and rejoin.

    They are of z's own part of the graph: of the forward, or of the backward.
    """

    def __init__(self, facts: Graph, z: Node) -> None:
        self.facts, self.z = facts, z
        self.operands: list[Node] = []
        self.members: dict[Node, Member] = {z: Member((), ())}
        self._grow()

    def _grow(self) -> None:
        pending = self.facts.users_in_phase(self.z)
        heapq.heapify(pending)  # nodes compare by their place in the graph
        while pending:
            node = heapq.heappop(pending)
            if node in self.members:
                continue
            view = self._view_of(node)
            if view is None:
                continue
            inputs = tuple(i for i in node.all_input_nodes if i in self.members)
            self.members[node] = Member(inputs, view)
            for user in self.facts.users_in_phase(node):
                heapq.heappush(pending, user)

    def _view_of(self, node: Node) -> tuple[Any, ...] | None:
        """The views between z and ``node``'s elements, or None if it does not belong."""
        if is_identity(node):
            source = self.members.get(node.args[0])  # type: ignore[arg-type]
            if source is None or not self._wide(node) or _becomes_bool(node):
                return None
            step = ((node.target, str(node.args[1:])),) if is_view(node) else ()
            return (*source.view, *step)
        if not is_pointwise(node):
            return None
        inputs = [i for i in node.all_input_nodes if i in self.members]
        views = {self.members[i].view for i in inputs}
        same = all(shape_of(i) == shape_of(node) for i in inputs)
        if len(views) != 1 or not same or not self._wide(node):
            return None
        others = [i for i in node.all_input_nodes if i not in self.members]
        return views.pop() if all(self._is_scalar(i) for i in others) else None

    def _wide(self, node: Node) -> bool:
        """Whether ``node`` holds all of z's values, in a dtype no wider than the op computes in."""
        z, value = tensor(self.z), tensor(node)
        if z is None or value is None or value.device != z.device:
            return False
        if value.dtype is torch.bool:
            return True
        return represents(value.dtype, z.dtype) and represents(compute_dtype(z.dtype), value.dtype)

    def _is_scalar(self, node: Node) -> bool:
        if isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat)):
            return True
        return self.facts.constant(node) is not None or self.is_operand(node)

    def is_operand(self, node: Node) -> bool:
        """One real floating element that is known before z, or at least without it."""
        value = tensor(node)
        if value is None or not value.dtype.is_floating_point or not numel_is_one(node):
            return False
        return not self.facts.depends_on(node, self.z)

    def behind(self, end: Node) -> list[Node]:
        """The region's nodes that ``end`` needs, in order, ``end`` among them and z not."""
        seen, pending = {self.z}, [end]
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                pending.extend(self.members[node].inputs)
        seen.discard(self.z)
        return sorted(seen)

    def chain(self, nodes: Sequence[Node]) -> list[Node]:
        """z and every one of ``nodes`` that all paths from z to the last one pass, in order.

        Args:
            nodes: as ``behind`` has them.
        """
        order = [self.z, *nodes]
        place = {node: i for i, node in enumerate(order)}
        chain, reach = [self.z], 0
        for i, node in enumerate(order):
            if i and reach <= i:
                chain.append(node)
            reach = max([reach, *(place[u] for u in node.users if u in place)])
        return chain

    def program(self, nodes: Sequence[Node], start: Node | None = None) -> Program:
        """``nodes`` as a function of z's or ``start``'s value, all but views: these move elements.

        Each other node is a step, in order.
        """
        values = {start or self.z: Value(0)}
        steps: list[Step] = []
        for node in nodes:
            if is_view(node):
                values[node] = values[node.args[0]]  # type: ignore[index]
                continue
            if is_cast(node):
                steps.append(Step(CAST, (values[node.args[0]], dtype_of(node))))  # type: ignore[index]
                values[node] = Value(len(steps))
                continue
            args = tuple(self._argument(a, values) for a in node.args)
            kwargs = tuple((k, self._argument(v, values)) for k, v in node.kwargs.items())
            steps.append(Step(node.target, args, kwargs))  # type: ignore[arg-type]
            values[node] = Value(len(steps))
        return tuple(steps)

    def _argument(self, arg: Any, values: dict[Node, Value]) -> Arg:
        if not isinstance(arg, Node):
            return arg if isinstance(arg, (bool, int, float, str)) or arg is None else str(arg)
        if arg in values:
            return values[arg]
        if isinstance(arg.meta.get("val"), (torch.SymInt, torch.SymFloat)):
            return Symbolic(arg.name)
        number, value = self.facts.constant(arg), tensor(arg)
        if number is None or value is None:
            return self._operand(arg)
        return TensorConst(number, value.dtype, value.dim() == 0)

    def _operand(self, node: Node) -> Input:
        node = self._peel(node)
        if node not in self.operands:
            self.operands.append(node)
        return Input("$", self.operands.index(node))

    def _peel(self, node: Node) -> Node:
        """Without casts that the kernel does anyway: a dynamic float stays the host's number."""
        value = tensor(self.z)
        compute = None if value is None else compute_dtype(value.dtype)
        while is_cast(node) and isinstance(node.args[0], Node):
            source, dtype = tensor(node.args[0]), dtype_of(node)
            lossy = dtype not in (compute, torch.float64)
            moved = source is None or source.device != node.meta["val"].device
            if lossy or moved or not source.dtype.is_floating_point:  # type: ignore[union-attr]
                break
            node = node.args[0]
        return node


def _becomes_bool(node: Node) -> bool:
    """Whether a cast keeps nothing of a number but whether it is zero."""
    source = dtype_of(node.args[0])  # type: ignore[arg-type]
    return dtype_of(node) is torch.bool and source is not torch.bool
