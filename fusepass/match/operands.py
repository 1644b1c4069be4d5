"""Operands: the tensors that an epilogue reads beside z, and where their elements lie beside z's.

An element of the epilogue reads one element of each: of a number a column, of a number a row, or of
a matrix. What is broadcast over the last of z's rows' dimensions, [B, 1, N] over [B, S, N], is a
number a column of each group of rows; over others, a matrix of stride 0 there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import Node
from torch.utils.checkpoint import CheckpointPolicy

from ..ir import DType
from ..ir.operands import rows_of_group, varied
from ..op.cpu import compute_dtype
from .facts import (
    Graph,
    dtype_name,
    dtype_of,
    has_a_place,
    is_awaited,
    is_cast,
    is_pointwise,
    is_view,
    numel_is_one,
    packet,
    shape_of,
    tensor,
)
from .gemms import is_ours, is_product
from .importing import reads
from .program import represents

Shape = tuple[Any, ...]

_NAMES = (torch.ops.aten.alias, torch.ops.aten.detach)  # the same tensor under another name

LATER = "takes the result of a later product, which may take this one's"
MAX_ASIDE = 24  # operators that an epilogue computes of its operands alone
_GROUP = 64  # rows that a kernel finishes together, at least; of fewer it reads a matrix's


def kind_of(node: Node, shape: Shape) -> str | None:
    """``$``, ``col``, ``row`` or ``mat``: how ``node`` is read beside a value of ``shape``.

    None if it does not broadcast to ``shape``.
    """
    if numel_is_one(node):
        return "$"
    own = shape_of(node)
    sizes = (1,) * (len(shape) - len(own)) + own
    if len(sizes) != len(shape) or any(s not in (1, w) for s, w in zip(sizes, shape, strict=True)):
        return None
    if all(s == 1 for s in sizes[:-1]):
        return "col" if sizes[-1] == shape[-1] else None
    if sizes[-1] == 1:
        return "row"
    return "col" if _is_of_groups(sizes[:-1], shape[:-1]) else "mat"


def _is_of_groups(sizes: Shape, rows: Shape) -> bool:
    """Whether a tensor [*sizes, N] has a number a column of each group of a known number of rows,
    which no kernel's tile need divide."""
    first, each = varied(sizes), rows_of_group(sizes, rows)
    whole = isinstance(each, int) and each > 0 and each % _GROUP == 0
    return whole and all(s == r for s, r in zip(sizes[:first], rows[:first], strict=True))


def group_of(node: Node, shape: Shape) -> int:
    """Of how many rows beside a value of ``shape`` a col operand has numbers of their own; 0: it is
    the same for all."""
    own = shape_of(node)[:-1]
    each = rows_of_group((*[1] * (len(shape) - 1 - len(own)), *own), shape[:-1])
    assert isinstance(each, int), "kind_of knows the rows of a group"
    return each


def tells_rows(node: Node, shape: Shape | None) -> bool:
    """Whether it depends on the row what is read of ``node`` beside a value of ``shape``; None is
    that of values beside which nothing does."""
    kind = None if shape is None else kind_of(node, shape)
    if shape is None or kind != "col":
        return kind in ("row", "mat")
    return group_of(node, shape) > 0


def why_not(facts: Graph, node: Node, z: Node, shape: Shape) -> str | None:
    """Why ``node`` is no operand beside a value of ``shape`` behind ``z``; None if it may be.

    It must be known without z, and of a type that holds no more than what is computed in. What a
    product behind z makes is none: that product may take this one's result.
    """
    ours, theirs = tensor(z), tensor(node)
    if ours is None or theirs is None or theirs.layout != torch.strided:
        return "takes something that is no plain tensor"
    if theirs.device != ours.device:
        return f"takes a tensor on {theirs.device}"
    if DType.of(theirs.dtype) is None:
        return f"takes a tensor of {dtype_name(theirs.dtype)}"
    if not _is_held(theirs.dtype, compute_dtype(ours.dtype)):
        return f"takes a tensor of {dtype_name(theirs.dtype)}, wider than what is computed in"
    if kind_of(node, shape) is None:
        return "takes a tensor of another shape"
    late = facts.late([node], z)
    if z in late:
        return "takes a tensor that is computed from the result itself"
    if any(is_product(n) or is_ours(n) for n in late):
        return LATER
    if any(map(is_awaited, late)):
        return "takes what other processes send while the product is computed"
    return None


# --- what is computed of operands alone -----------------------------------------------------------


def aside(
    facts: Graph, read: Iterable[Node], shape: Shape, region: Iterable[Node], compute: torch.dtype
) -> set[Node]:
    """What of the computation of ``read`` an epilogue does itself.

    A cast that loses nothing is free, and another name. Pointwise operators that nothing but the
    epilogue reads are no kernel of their own then: what they read takes the place of what they
    would write.

    Args:
        facts: of the graph.
        read: operands beside a value of ``shape``.
        region: the epilogue's own nodes.
        compute: the type that it computes in.
    """
    taken: set[Node] = set()
    pending, inside = set(read), set(region)
    while pending and len(taken) < MAX_ASIDE:
        current = max(pending)  # nodes compare by their place in the graph: users come first
        pending.remove(current)
        if _is_taken(facts, current, shape, inside, compute):
            taken.add(current)
            inside.add(current)
            pending.update(i for i in current.all_input_nodes if facts.constant(i) is None)
    return taken


def leaves(facts: Graph, nodes: Iterable[Node]) -> set[Node]:
    """The tensors that ``nodes`` read and that are none of them, nor numbers."""
    read = {i for node in nodes for i in node.all_input_nodes if facts.constant(i) is None}
    return read.difference(nodes)


def _is_taken(
    facts: Graph, node: Node, shape: Shape, inside: set[Node], compute: torch.dtype
) -> bool:
    if node.meta.get("recompute") == CheckpointPolicy.MUST_SAVE:
        return False  # it is in memory, and what it is computed of need not be
    source = node.args[0] if is_cast(node) else None
    if isinstance(source, Node):
        if not _is_plain(source, node, shape, compute):
            return False
        loses = not represents(node.meta["val"].dtype, source.meta["val"].dtype)
        return not loses or _is_of_one_matrix(facts, node, shape, inside, compute)
    if packet(node) in _NAMES:
        named = node.args[0]
        return isinstance(named, Node) and _is_alone(node, inside) and kind_of(node, shape) == "mat"
    if shape_of(node) != shape or not is_pointwise(node) or not reads(node.target):
        return False
    # Random numbers are drawn and compared in one kernel: a mask is shorter.
    return (
        _is_alone(node, inside)
        and not _is_shorter_to_save(facts, node)
        and not any(map(has_a_place, node.all_input_nodes))
        and all(
            facts.constant(i) is not None or _is_plain(i, node, shape, compute)
            for i in node.all_input_nodes
        )
    )


def _is_alone(node: Node, inside: set[Node]) -> bool:
    """Whether nothing but ``inside`` reads ``node``; a mask is computed of it anew, in the kernel
    that computes masks."""
    return all(user in inside or _is_for_masks(user) for user in node.users)


def _is_for_masks(node: Node) -> bool:
    """Whether ``node`` is a mask, or a cast that only masks are computed of."""
    if dtype_of(node) is torch.bool:
        return True
    return is_cast(node) and bool(node.users) and all(map(_is_for_masks, node.users))


def _is_of_one_matrix(
    facts: Graph, cast: Node, shape: Shape, inside: set[Node], compute: torch.dtype
) -> bool:
    """Whether ``cast`` rounds what pointwise operators have computed of one matrix no wider.

    As it is of z, what was computed is then read unrounded; and that matrix, be it saved for the
    backward, takes no more memory than the result of the cast.
    """
    if dtype_of(cast) is torch.bool or not _is_alone(cast, inside):
        return False
    taken, read, pending = {cast}, set[Node](), set(cast.all_input_nodes)
    while pending:
        node = max(pending)
        pending.remove(node)
        if _is_taken(facts, node, shape, inside | taken, compute):
            taken.add(node)
            pending.update(i for i in node.all_input_nodes if facts.constant(i) is None)
        else:
            read.add(node)
    wide = [n for n in read if kind_of(n, shape) == "mat"]
    own, sizes = cast.meta["val"].dtype.itemsize, [n.meta["val"].dtype.itemsize for n in wide]
    computes = any(not is_cast(n) for n in taken)
    return computes and len(wide) <= 1 and all(size <= own for size in sizes)


def _is_shorter_to_save(facts: Graph, node: Node) -> bool:
    """Whether ``node``, of the backward, is a mask that the forward may save in place of what it is
    computed of, because the backward reads that for nothing but masks."""
    if dtype_of(node) is not torch.bool or not facts.has_backward or node in facts.forward:
        return False
    read = (i for i in node.all_input_nodes if facts.constant(i) is None)
    return not all(_is_read_otherwise(facts, i) for i in read)


def _is_read_otherwise(facts: Graph, node: Node) -> bool:
    """Whether the backward reads ``node``, under whatever name, for something that is no mask."""
    while is_view(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    pending = [node]
    while pending:
        for user in pending.pop().users:
            if is_view(user):
                pending.append(user)
            elif user not in facts.forward and dtype_of(user) is not torch.bool:
                return True
    return False


def _is_plain(node: Node, beside: Node, shape: Shape, compute: torch.dtype) -> bool:
    """Whether the epilogue may read ``node`` itself, as an operator of operands does."""
    own, value = tensor(beside), tensor(node)
    if own is None or value is None or value.device != own.device:
        return False
    kind = kind_of(node, shape)
    if kind == "$":
        return is_scalar(value, compute) and not is_cast(beside)
    return kind is not None and _is_held(value.dtype, compute)


def _is_held(dtype: torch.dtype, compute: torch.dtype) -> bool:
    """Whether what computes in ``compute`` reads ``dtype`` without loss."""
    known = DType.of(dtype) is not None
    return known and (dtype == torch.bool or represents(compute, dtype))


def is_scalar(value: torch.Tensor, compute: torch.dtype) -> bool:
    """Whether one element is a number as the epilogue takes it.

    One without dimensions is rounded to the dtype of what it meets; any other makes it wider.
    """
    return value.dtype.is_floating_point and (value.dim() == 0 or represents(compute, value.dtype))
