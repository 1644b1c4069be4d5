"""Batches of float32 matrices that were widened from 16 bits: what a ``bmm`` multiplies by then.

Torch takes an attention apart into products of float32: q and k are widened, multiplied by the root
of the scale each, and copied. None of that is needed by an op that reads 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from .facts import Graph, dtype_of, is_cast, packet, shape_of, sizes_of
from .gemms import operands

aten = torch.ops.aten

_NARROW = (torch.float16, torch.bfloat16)
_COPIES = (aten.clone, aten.alias, aten.detach)
_RESHAPES = (aten.view, aten._unsafe_view, aten.reshape)
_FAR = 16  # nodes between a cast and the product


@dataclass(frozen=True)
class Step:
    """A view that the op's operand is seen through: an operator, its arguments but the first."""

    target: Any
    args: tuple[Any, ...]

    def of(self, value: torch.Tensor) -> torch.Tensor:
        """The view of a fake tensor."""
        args = torch.fx.node.map_arg(self.args, lambda n: n.meta["val"])
        seen: torch.Tensor = self.target(value, *args)
        return seen


@dataclass(frozen=True)
class Operand:
    """A 16-bit matrix of a batch as the op takes it.

    Attributes:
        source: what was widened.
        steps: from ``source`` to [..., rows, K], which copy nothing.
        value: a fake tensor of the outcome.
    """

    source: Node
    steps: tuple[Step, ...]
    value: torch.Tensor

    def then(self, target: Any, *args: Any) -> Operand:
        """Seen through one view more, whose sizes may be nodes.

        Raises:
            RuntimeError: if that takes a copy.
        """
        step = Step(target, args)
        return Operand(self.source, (*self.steps, step), step.of(self.value))


@dataclass(frozen=True)
class Widened:
    """A ``bmm`` of two widened batches: scale * x w^T.

    Attributes:
        gemm: the node.
        x, w: [..., M, K] and [..., N, K], one or two leading dimensions alike.
        scale: the product of the numbers that the widened matrices were multiplied by.
        nodes: what was between the matrices and the product.
    """

    gemm: Node
    x: Operand
    w: Operand
    scale: float
    nodes: tuple[Node, ...]


def read_widened(facts: Graph, gemm: Node) -> Widened | None:
    """``gemm`` as a product of widened batches, or None."""
    if gemm.target is not aten.bmm.default or dtype_of(gemm) != torch.float32:
        return None
    ways = [_way(facts, node) for node in operands(gemm)]
    if any(way is None for way in ways):
        return None
    x, w = (_seen(way.source, way.views) for way in ways if way is not None)
    if x is None or w is None or x.value.dtype != w.value.dtype:
        return None
    # bmm's second matrix is [K, N].
    x, w = _alike(x, w.then(aten.permute.default, _swapped(w.value.dim())))
    if sizes_of(x.value)[:-2] != sizes_of(w.value)[:-2]:
        return None
    scale = math.prod(way.scale for way in ways if way is not None)
    nodes = {n for way in ways if way is not None for n in way.nodes}
    return Widened(gemm, x, w, scale, tuple(sorted(nodes)))


def _swapped(dims: int) -> list[int]:
    return [*range(dims - 2), dims - 1, dims - 2]


def _alike(x: Operand, w: Operand) -> tuple[Operand, Operand]:
    """Both with two leading dimensions, where one of them has, of known sizes."""
    for one in (x, w):
        leading = sizes_of(one.value)[:-2]
        if len(leading) == 2:
            return _split(x, leading), _split(w, leading)
    return x, w


def _split(operand: Operand, leading: tuple[Any, ...]) -> Operand:
    sizes = [*leading, *sizes_of(operand.value)[1:]]
    if operand.value.dim() != 3 or not all(isinstance(size, int) for size in sizes):
        return operand
    return operand.then(aten.view.default, sizes)


# --- from a product back to what was widened ------------------------------------------------------


@dataclass(frozen=True)
class _Way:
    source: Node
    views: tuple[Node, ...]  # from the source on
    scale: float
    nodes: tuple[Node, ...]


def _way(facts: Graph, node: Node) -> _Way | None:
    """From the cast of 16 bits to ``node``: views, copies, and products with numbers."""
    views, nodes, scale = list[Node](), list[Node](), 1.0
    while len(nodes) < _FAR:
        nodes.append(node)
        source = node.args[0] if node.args else None
        if is_cast(node) and isinstance(source, Node) and dtype_of(source) in _NARROW:
            return _Way(source, tuple(reversed(views)), scale, tuple(nodes))
        if packet(node) is aten.mul:
            factor, source = _factor(facts, node)
            scale *= factor
        elif packet(node) in (*_COPIES, *_RESHAPES, aten.permute, aten.expand, aten.unsqueeze):
            views.append(node)
        else:
            return None
        if not isinstance(source, Node) or dtype_of(source) != torch.float32:
            return None
        node = source
    return None


def _factor(facts: Graph, node: Node) -> tuple[float, Node | None]:
    """The number that ``node`` multiplies by, and what; nothing if it is no number known now."""
    for number, other in (node.args[:2], node.args[1::-1]):
        known = facts.constant(number) if isinstance(number, Node) else number
        if isinstance(known, (int, float)) and isinstance(other, Node):
            same = shape_of(other) == shape_of(node)
            return float(known), other if same else None
    return 1.0, None


# --- the same views of 16 bits, without copies ----------------------------------------------------


def _seen(source: Node, views: Sequence[Node]) -> Operand | None:
    """``source`` through ``views``; two leading dimensions that they merge stay two.

    None where that takes a copy, or is of other dimensions.
    """
    operand, merged = Operand(source, (), source.meta["val"]), False
    for view in views:
        shape, own = list(shape_of(view)), list(sizes_of(operand.value))
        logical = [own[0] * own[1], *own[2:]] if merged else own
        if packet(view) in _COPIES or (shape == logical and packet(view) is not aten.permute):
            continue
        joins = packet(view) in _RESHAPES and len(own) == 4
        if joins and not merged and shape == [own[0] * own[1], *own[2:]]:
            merged = True
        elif joins and merged and shape == own:
            merged = False
        else:
            step = _step(view, merged)
            if step is None:
                return None
            try:
                operand = operand.then(*step)
            except (RuntimeError, ValueError):  # it takes a copy
                return None
    return operand if operand.value.dim() == (4 if merged else 3) else None


def _step(view: Node, merged: bool) -> tuple[Any, ...] | None:
    """A view as an operator and its arguments; of a matrix whose first dimension is two."""
    if not merged:
        target = aten.view.default if packet(view) in _RESHAPES else view.target
        return target, *view.args[1:]
    if packet(view) is not aten.permute:
        return None
    order: list[int] = list(view.args[1])  # type: ignore[arg-type]
    rest = [d % len(order) + 1 for d in order[1:]]
    return (aten.permute.default, [0, 1, *rest]) if order[0] == 0 else None
