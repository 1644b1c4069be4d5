"""Steps: a region's nodes as those of a program; numbers, symbols and operands are arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from ..ir import Z1, DType, Input
from ..op.cpu import compute_dtype
from . import operands
from .facts import dtype_of, is_cast, is_view, numel_is_one, packet, tensor
from .program import CAST, Arg, Step, Symbolic, TensorConst, Value

if TYPE_CHECKING:
    from .region import Region

aten = torch.ops.aten


class Writer:
    """Nodes of a region as steps."""

    def __init__(self, region: Region, start: Node) -> None:
        self.region, self.facts = region, region.facts
        self.steps: list[Step] = []
        self.values: dict[Node, Value | Input] = dict.fromkeys(region.roots[1:], Z1)
        self.values[start] = Value(0)

    def write(self, node: Node) -> Value | Input:
        if node in self.values:
            return self.values[node]
        if node in self.region.rotations:
            self.values[node] = self._rotated(node)
            return self.values[node]
        if node in self.region.joins_of_heads:
            return self._joined(node)
        if is_view(node) or packet(node) is aten.slice:
            self.values[node] = self._argument(node.args[0])  # type: ignore[assignment]
            return self.values[node]
        if is_cast(node):
            step = Step(CAST, (self._argument(node.args[0]), dtype_of(node)))
        else:
            args = tuple(self._argument(a) for a in node.args)
            kwargs = tuple((k, self._argument(v)) for k, v in node.kwargs.items())
            step = Step(node.target, args, kwargs)  # type: ignore[arg-type]
        self.steps.append(step)
        self.values[node] = Value(len(self.steps))
        return self.values[node]

    def _rotated(self, node: Node) -> Value | Input:
        """z exchanged, or, where it was cast before, that cast."""
        found = self.region.rotations[node]
        part = self.region.members[found.of].part
        head = part.head if part and found.columns > 2 else 0
        rot, dtype = Input("rot", found.columns, None, head), dtype_of(node)
        if dtype is dtype_of(self.region.z):
            return rot
        self.steps.append(Step(CAST, (rot, dtype)))
        return Value(len(self.steps))

    def _joined(self, node: Node) -> Value | Input:
        """What was computed of a head's first columns, and the others as they were."""
        computed, rest = self.region.members[node].inputs
        part = self.region.members[computed].part
        assert part is not None, "it is of some of a head's columns"
        first = Input("first", part.columns, None, part.head)
        args = (first, self._argument(computed), self._argument(rest))
        self.steps.append(Step(aten.where.self, args))
        self.values[node] = Value(len(self.steps))
        return self.values[node]

    def _argument(self, arg: Any) -> Arg:
        if not isinstance(arg, Node):
            return arg if isinstance(arg, (bool, int, float, str)) or arg is None else str(arg)
        if arg in self.values:
            return self.values[arg]
        if isinstance(arg.meta.get("val"), (torch.SymInt, torch.SymFloat)):
            return Symbolic(arg.name)
        number, value = self.facts.constant(arg), tensor(arg)
        if number is not None and value is not None:
            return TensorConst(number, value.dtype, value.dim() == 0)
        return self.write(arg) if arg in self.region.aside else self._operand(arg)

    def _operand(self, node: Node) -> Input:
        known = self.region.operands
        kind = "$" if numel_is_one(node) else self._kind(node)
        node = self._peel(node) if kind == "$" else node
        for place, other in known.items():
            if other is node and place.kind == kind:
                return place
        own = dtype_of(node)
        dtype = None if kind == "$" or own is dtype_of(self.region.z) or own is None else own
        index = sum(place.kind == kind for place in known)
        place = Input(kind, index, None if dtype is None else DType.of(dtype))
        known[place] = node
        return place

    def _kind(self, node: Node) -> str:
        shape = self.region.shape
        if node in self.region.by_heads:
            return "mat"
        kind = "col" if shape is None else operands.kind_of(node, shape)
        assert kind is not None, "the region reads what broadcasts"
        return kind

    def _peel(self, node: Node) -> Node:
        """Without casts that the kernel does anyway: a dynamic float stays the host's number."""
        value = tensor(self.region.z)
        compute = None if value is None else compute_dtype(value.dtype)
        while is_cast(node) and isinstance(node.args[0], Node):
            source, dtype = tensor(node.args[0]), dtype_of(node)
            lossy = dtype not in (compute, torch.float64)
            moved = source is None or source.device != node.meta["val"].device
            if lossy or moved or not source.dtype.is_floating_point:  # type: ignore[union-attr]
                break
            node = node.args[0]
        return node
