"""Rewrite: one op for a GEMM and its epilogue. With added.py the only code that edits a graph."""

from __future__ import annotations

from typing import Any, Union

import torch
from torch.fx import Node
from torch.fx.node import Argument

from ..ir import Z1, Epilogue, Input, Output, Z
from ..ir.operands import varied
from ..match.anchor import Anchor
from ..match.ends import End
from ..match.epilogues import Match
from ..match.facts import Graph, is_cast, is_view, packet, shape_of
from ..op import linear as _op  # noqa: F401  (defines torch.ops.fusepass)
from .added import (
    check_same,
    contiguous_like,
    describe,
    hoist,
    item_of,
    named,
    reshaped_to,
    size_of,
    summed_as,
    through,
    vector_of,
    weight_of,
)
from .recompute import result_users, weighed_by_partitioner
from .tables import table_of
from .transaction import Transaction

aten = torch.ops.aten

Preacts = list[Union[Node, None]]  # z and z1, each where it is needed


def replace(facts: Graph, found: Match, numerics: str, edit: Transaction) -> list[Node]:
    """Puts the fused op in front of z and hands its results to the users of the ends and of z.

    Args:
        facts: of the graph as it is; true of the edited one, too.
        found: what to replace.
        numerics: the op's.
        edit: of the graph.

    Returns:
        The op's results for the ends.

    Raises:
        RuntimeError: if an operand depends on z, or the result is not what it replaces.
    """
    graph, anchors = facts.graph, _anchors(found)
    read = _only_read(facts, found)
    needed = [n for a in anchors for n in (a.x, a.kn, a.bias) if n is not None]
    hoist(facts, [*found.operands, *_sizes(facts, found), *needed], found.place)
    with graph.inserting_before(found.place):
        outs, preacts = (_linear if found.is_plain else _gemm)(facts, found, numerics)
        kept: list[tuple[Node, Node]] = []
        for anchor, preact in zip(anchors, preacts, strict=True):
            if preact is None:
                continue
            if anchor.z in facts.forward and weighed_by_partitioner(facts):
                preact = named(facts, preact, anchor.gemm)
            kept.append((anchor.z, _as_z(facts, found, anchor, preact)))
    for end, out in zip(found.ends, outs, strict=True):
        _hand_on(facts, found, end, out, bool(kept))
    for old, new in kept:
        check_same(new, old)
        old.replace_all_uses_with(new)
    dead = {*found.inside, *read}
    for anchor in anchors:
        part = () if anchor.columns is None else anchor.z.all_input_nodes
        dead.update((anchor.gemm, *anchor.views, *part, anchor.z, anchor.kn))
    edit.discard(sorted(dead, reverse=True))
    return outs


def _hand_on(facts: Graph, found: Match, end: End, out: Node, kept: bool) -> None:
    """Gives ``out``, the op's result for ``end``, to the users of that.

    Args:
        kept: whether z is there, for those to whom it is not given.
    """
    # Not earlier: the sizes that the views ask for may be computed behind z.
    with facts.graph.inserting_before(end.node):
        if end.is_sum:
            result = summed_as(facts, out, end.node)
        else:
            before = found.anchor.reshapes if found.shape is None else ()
            result = through(facts, out, (*before, *((v, v.args[1:]) for v in end.views)))
    check_same(result, end.node)
    inside = set(found.inside)
    for user in result_users(facts, found, end) if kept else list(end.node.users):
        if user not in inside:
            user.replace_input_with(end.node, result)


def _anchors(found: Match) -> tuple[Anchor, ...]:
    return (found.anchor,) if found.second is None else (found.anchor, found.second)


def _linear(facts: Graph, found: Match, numerics: str) -> tuple[list[Node], Preacts]:
    """The op for one weight, scalars and one result: that, and z where it is needed."""
    graph, anchor = facts.graph, found.anchor
    bias = anchor.bias and vector_of(facts, anchor.bias)
    operands = list(found.operands)
    arguments = (anchor.x, weight_of(facts, anchor.kn), bias, str(found.epilogue), operands)
    kwargs: dict[str, Argument] = {} if numerics == "accurate" else {"numerics": numerics}
    if not found.needs(anchor):
        out = graph.call_function(torch.ops.fusepass.linear.default, arguments, kwargs)
        describe(facts, out, anchor.gemm, contiguous_like(anchor.gemm))
        return [out], [None]
    both = graph.call_function(torch.ops.fusepass.linear_with_preact.default, arguments, kwargs)
    describe(facts, both, anchor.gemm, (contiguous_like(anchor.gemm), contiguous_like(anchor.gemm)))
    return [item_of(facts, both, 0, anchor.gemm)], [item_of(facts, both, 1, anchor.gemm)]


def _gemm(facts: Graph, found: Match, numerics: str) -> tuple[list[Node], Preacts]:
    """The general op: the results, and z and z1 where they are needed."""
    assert numerics == "accurate", "bitwise reads scalars only"
    graph, anchor, anchors = facts.graph, found.anchor, _anchors(found)
    needs = [found.needs(a) for a in anchors]
    more = [Output(value) for value, need in zip((Z, Z1), needs, strict=False) if need]
    epilogue = Epilogue(found.epilogue.nodes, (*found.epilogue.outputs, *more))
    x, width = _rows(facts, found), anchor.width
    weights = [_part(facts, weight_of(facts, a.kn), a.columns) for a in anchors]
    biases = [a.bias and _part(facts, vector_of(facts, a.bias), a.columns) for a in anchors]
    operands = [
        _operand_by_heads(facts, found, node, place, x)
        if node in found.by_heads
        else _operand(facts, node, place, x, width)
        for node, place in zip(found.operands, epilogue.operands, strict=True)
    ]
    arguments = (x, weights, biases, str(epilogue), operands)
    results = graph.call_function(torch.ops.fusepass.gemm.default, arguments)
    like = x.meta["val"].new_empty((*x.meta["val"].shape[:-1], width))
    values = []
    for output in epilogue.outputs:
        dtype = output.dtype.in_torch if output.dtype else like.dtype
        values.append(like.new_empty((width,) if output.is_sum else like.shape, dtype=dtype))
    describe(facts, results, anchor.gemm, values)
    items = iter([item_of(facts, results, i, anchor.gemm) for i in range(len(values))])
    outs = [next(items) for _ in found.ends]
    return outs, [next(items) if need else None for need in needs]


def _part(facts: Graph, node: Node, columns: tuple[int, int] | None) -> Node:
    """Those rows of a weight, or elements of a bias, that make ``columns`` of the result."""
    if columns is None:
        return node
    part = facts.graph.call_function(aten.slice.Tensor, (node, 0, *columns))
    describe(facts, part, node, aten.slice.Tensor(node.meta["val"], 0, *columns))
    return part


def _as_z(facts: Graph, found: Match, anchor: Anchor, preact: Node) -> Node:
    """One of the op's further results in the shape of the anchor's z."""
    if found.shape is None:
        return through(facts, preact, anchor.reshapes)
    if shape_of(preact) == shape_of(anchor.z):
        return preact
    node = reshaped_to(facts, preact, [-1, shape_of(anchor.gemm)[1]], anchor.gemm.meta["val"].shape)
    return through(facts, node, anchor.reshapes)


# --- x and the operands ---------------------------------------------------------------------------


def _sizes(facts: Graph, found: Match) -> list[Node]:
    """The nodes of the sizes that x must be seen in, where it is not of two dimensions."""
    source = _reshaped(found)
    return [s for s in _sizes_of(found, source) if isinstance(s, Node)] if source else []


def _reshaped(found: Match) -> Node | None:
    """The reshape of z to the shape beside which operands are read, unless x has it already."""
    anchor, shape = found.anchor, found.shape
    if shape is None or len(shape) == 2 or _wide_x(found) is not None:
        return None
    return next(n for n in (*anchor.views, *found.inside) if shape_of(n) == shape and is_view(n))


def _sizes_of(found: Match, node: Node) -> list[Any]:
    """The shape of a node on z's way as the sizes that a reshape to it takes: numbers and nodes."""
    if node is found.anchor.gemm:
        return [-1, found.anchor.width]
    if packet(node) in (aten.view, aten._unsafe_view, aten.reshape):
        return list(node.args[1])  # type: ignore[arg-type]
    way = {found.anchor.gemm, found.anchor.z, *found.anchor.views, *found.inside}
    source = next(i for i in node.all_input_nodes if i in way)
    sizes, dims = _sizes_of(found, source), node.args[1:]
    if packet(node) is aten.unsqueeze:
        sizes.insert(dims[0] % (len(sizes) + 1), 1)  # type: ignore[operator, arg-type]
    elif packet(node) is aten.squeeze:
        asked = dims[0] if dims else range(len(sizes))
        given = [asked] if isinstance(asked, int) else asked
        gone = {d % len(sizes) for d in given}  # type: ignore[operator, union-attr]
        ones = [i for i, size in enumerate(shape_of(source)) if size == 1]
        sizes = [size for i, size in enumerate(sizes) if not (i in gone and i in ones)]
    return sizes


def _wide_x(found: Match) -> Node | None:
    """What x is a reshape of, if that has the rows of the operands."""
    x, shape = found.anchor.x, found.shape
    source = x.args[0] if packet(x) in (aten.view, aten._unsafe_view, aten.reshape) else None
    if shape is None or not isinstance(source, Node):
        return None
    return source if shape_of(source) == (*shape[:-1], shape_of(x)[1]) else None


def _rows(facts: Graph, found: Match) -> Node:
    """x in the shape of the operands' rows."""
    x, shape = found.anchor.x, found.shape
    if shape is None or len(shape) == 2:
        return x
    source, wide = _reshaped(found), _wide_x(found)
    if wide is not None:
        return wide
    assert source is not None
    k = x.meta["val"].shape[1]
    sizes = _sizes_of(found, source)[:-1]
    return reshaped_to(facts, x, [*sizes, k], (*source.meta["val"].shape[:-1], k))


def _operand(facts: Graph, node: Node, place: Input, x: Node, width: Any) -> Node:
    """``node`` as the op takes it: [N], [..., 1] or [..., N], broadcast dimensions expanded, but of
    a col of groups of rows not."""
    if place.kind == "$":
        return node
    own = shape_of(node)
    if place.kind == "col" and not varied(own[:-1]):
        return vector_of(facts, node)
    value, wanted = node.meta["val"], [*x.meta["val"].shape[:-1], width]
    new = len(wanted) - len(own)
    if place.kind == "row":
        wanted[-1] = 1
    elif place.kind == "col":
        wanted = [*[1] * new, *own]
    sizes: list[Any] = []
    for i, size in enumerate(wanted):
        if i >= new and (own[i - new] != 1 or size == 1):
            sizes.append(-1)  # as it is
        else:
            sizes.append(size if isinstance(size, int) else size_of(facts, x, i))
    if all(s == -1 for s in sizes):
        return node
    expanded = facts.graph.call_function(aten.expand.default, (node, sizes))
    describe(facts, expanded, node, value.expand(wanted))
    return expanded


def _operand_by_heads(facts: Graph, found: Match, node: Node, place: Input, x: Node) -> Node:
    """``node`` as [..., D] beside the op's rows."""
    table = table_of(facts, found, node)
    return _operand(facts, table, place, x, shape_of(table)[-1])


def _only_read(facts: Graph, found: Match) -> set[Node]:
    """The nodes that only the replaced operators may have read: numbers, and what is computed of
    operands alone."""
    read, roots = set[Node](), {a.z for a in _anchors(found)}
    pending = [i for n in found.inside for i in n.all_input_nodes]
    while pending:
        node = pending.pop()
        if node not in read and node not in found.inside and node not in roots:
            read.add(node)
            folded = is_cast(node) or facts.constant(node) is not None or node in found.aside
            pending.extend(node.all_input_nodes if folded else ())
    return read - set(found.operands)
