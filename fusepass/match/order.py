"""In which order tensors lie in memory, and whether that matters."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from .facts import expression, is_fusible, packet, shape_of, tensor

aten = torch.ops.aten

# Inductor chooses how these lie, too; what is contiguous does not tell how it is read.
_COPIES = (aten.clone, aten.cat)

# Views that there are of contiguous tensors, and whose elements are in the same order.
_SAME_ORDER = (
    aten.view, aten._unsafe_view, aten.unsqueeze, aten.squeeze, aten.alias, aten.detach,
)  # fmt: skip


def lie_alike(one: Node, other: Node) -> bool:
    """Whether two tensors of one shape have their elements in one order in memory."""
    shape, strides = shape_of(one), [_strides(n) for n in (one, other)]
    pairs = zip(shape, *strides, strict=True)
    return all(size == 1 or a == b for size, a, b in pairs)


def shows_order(node: Node) -> bool:
    """Whether it matters in which order ``node``, or what has it of ``node``, lies in memory.

    Inductor chooses how what it computes for its own code and for attention lies; but what the
    graph returns has the order of what it is computed of.
    """
    pending, seen = [(node, False)], {node}
    while pending:
        source, attended = pending.pop()
        for user in source.users:
            if not _hides_order(source, user, attended):
                return True
            inductors = is_fusible(user) or packet(user) in _COPIES
            attends = not inductors and (attended or _is_attention(user))
            if user not in seen and (attends or not _is_contiguous(user)):
                seen.add(user)
                pending.append((user, attends))
    return False


def _hides_order(source: Node, user: Node, attended: bool) -> bool:
    """Whether ``user`` does not tell in which order ``source`` lies; a result of attention if
    ``attended``, which may then lie otherwise than its fake tensor says."""
    if is_fusible(user) or packet(user) in _COPIES or user.target is operator.getitem:
        return True
    if attended:
        same = packet(user) in _SAME_ORDER and shape_of(user) == shape_of(source)
        return same or packet(user) is aten.permute
    return packet(user) in _SAME_ORDER or _is_attention(user)


def _is_attention(node: Node) -> bool:
    """Whether ``node`` is torch's own, which Inductor runs on heads of any order, and takes what it
    gives as it lies."""
    return "scaled_dot_product" in str(node.target)


def _is_contiguous(node: Node) -> bool:
    if tensor(node) is None:
        return False
    expected: Any = 1
    for size, stride in zip(shape_of(node)[::-1], _strides(node)[::-1], strict=True):
        if size != 1 and stride != expected:
            return False
        expected = expected * size
    return True


def _strides(node: Node) -> tuple[Any, ...]:
    value = tensor(node)
    assert value is not None, "what lies in memory has a fake tensor"
    return tuple(map(expression, value.stride()))
