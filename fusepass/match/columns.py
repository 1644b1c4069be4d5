"""Columns: the views of a product that are ranges of its columns, as queries, keys and values of
one weight are."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node
from torch.utils._python_dispatch import _disable_current_modes

from .anchor import Anchor
from .facts import Graph, is_identity, is_view, packet, shape_of

aten = torch.ops.aten

_RESHAPES = (aten.view, aten._unsafe_view, aten.reshape)
_SPLITS = (aten.split, aten.split_with_sizes, aten.unbind)
_PARTS = (aten.slice, aten.select)
_MOST = 4  # ranges
_FAR = 16  # nodes behind one that are looked at


def columns_of(facts: Graph, anchor: Anchor) -> tuple[Node, dict[Node, tuple[int, int]]] | None:
    """The last node that has all columns of the product, and of which columns those that are views
    of it are: each column of one, or of several that are the same."""
    gemm, width = anchor.gemm, shape_of(anchor.gemm)[1]
    if facts.has_backward or anchor.blocked or anchor.z is not gemm or not isinstance(width, int):
        return None
    if anchor.bias is not None and len(shape_of(anchor.bias)) != 1:
        return None
    whole = _whole(gemm, width)
    rank, found = len(shape_of(whole)) - 1, dict[Node, tuple[int, int]]()
    for steps in _ways(whole, rank):
        columns = _columns(steps, rank, width)
        if columns is None or _is_returned(steps[-1]):
            return None
        found[steps[-1]] = columns
    ends = sorted(set(found.values()))
    met = all(a[1] == b[0] for a, b in zip([(0, 0), *ends], [*ends, (width, width)], strict=True))
    return (whole, found) if met and 1 < len(ends) <= _MOST else None


def _whole(gemm: Node, width: int) -> Node:
    """The last of the reshapes of ``gemm`` that alone use it and keep its columns."""
    node = gemm
    while len(node.users) == 1:
        (user,) = node.users
        if packet(user) not in _RESHAPES or shape_of(user)[-1] != width:
            break
        node = user
    return node


def _ways(whole: Node, rank: int) -> Iterator[list[Node]]:
    """The views on the way to each node that is a part of ``whole``'s columns, ``rank`` dimensions
    before these; a way that is none ends in what has all columns."""
    pending: list[list[Node]] = [[user] for user in whole.users]
    while pending:
        steps = pending.pop()
        node = steps[-1]
        if packet(node) in _SPLITS or (packet(node) in _RESHAPES and node.users):
            pending += [[*steps, user] for user in node.users]
        else:
            yield steps


def _columns(steps: list[Node], rank: int, width: int) -> tuple[int, int] | None:
    """From which to which of ``width`` columns the last of ``steps``, behind ``rank`` dimensions,
    is; None if these are not the columns of one range, in order."""
    (kind, item), shape = (packet(steps[-1]), steps[-1].target), shape_of(steps[-1])
    if kind not in _PARTS and item is not operator.getitem:
        return None
    if not all(isinstance(size, int) for size in shape[rank:]):
        return None
    with _disable_current_modes():
        values = torch.arange(width).view(*[1] * rank, width)
        for node in steps:
            moved = _applied(node, values, rank)
            if moved is None:
                return None
            values = moved
        flat = values.flatten()
        if not len(flat):
            return None
        start, end = int(flat[0]), int(flat[0]) + len(flat)
        same = torch.equal(flat, torch.arange(start, end))
    return (start, end) if same and tuple(values.shape[rank:]) == shape[rank:] else None


def _applied(node: Node, values: Any, rank: int) -> Any:
    """What ``node`` makes of the numbers of columns, or None if it touches what is before them."""
    if node.target is operator.getitem:
        return values[node.args[1]]
    args: list[Any] = list(node.args[1:])
    if node.kwargs:
        return None
    if packet(node) in _RESHAPES:
        sizes = args[0]
        if len(sizes) <= rank or not all(isinstance(s, int) for s in sizes[rank:]):
            return None
        source = node.args[0]
        if shape_of(node)[:rank] != shape_of(source)[:rank]:  # type: ignore[arg-type]
            return None
        return values.view(*[1] * rank, *shape_of(node)[rank:])
    place = 1 if packet(node) in (aten.split, aten.split_with_sizes) else 0
    dim = args[place] if len(args) > place else 0
    if not isinstance(dim, int) or dim % values.dim() < rank:
        return None
    return node.target(values, *args)  # type: ignore[operator]


def is_negated(node: Node) -> bool:
    """Whether some columns of ``node`` are negated, as they are where halves are exchanged."""
    pending, seen = [node], {node}
    while pending and len(seen) < _FAR:
        for user in pending.pop().users:
            if packet(user) is aten.neg:
                return True
            if user not in seen and (is_identity(user) or packet(user) in _PARTS):
                seen.add(user)
                pending.append(user)
    return False


def _is_returned(node: Node) -> bool:
    """Whether the graph returns ``node``, or a view of it, which lies as it does."""
    pending = [node]
    while pending:
        for user in pending.pop().users:
            if user.op == "output":
                return True
            if is_view(user) or packet(user) in _PARTS or packet(user) is aten.expand:
                pending.append(user)
    return False
