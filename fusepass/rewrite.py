"""Rewrite: one op for a GEMM and its epilogue. The only code that edits a graph."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import Argument

from . import op as _op  # noqa: F401  (defines torch.ops.fusepass)
from .facts import Graph, dtype_of, is_cast, packet, shape_of, tensor
from .match import Match
from .recompute import result_is_saved, weighed_by_partitioner
from .transaction import Transaction

aten = torch.ops.aten


def replace(facts: Graph, found: Match, numerics: str, edit: Transaction) -> None:
    """Puts the fused op in front of z and hands its results to the users of exit and z.

    Args:
        facts: of the graph as it is; true of the edited one, too.
        found: what to replace.
        numerics: the op's.
        edit: of the graph.

    Raises:
        RuntimeError: if an operand depends on z, or the result is not what it replaces.
    """
    graph, anchor = facts.graph, found.anchor
    scalars = _scalars(facts, found)
    _hoist(facts, found.operands, anchor.z)
    with graph.inserting_before(anchor.z):
        bias = anchor.bias and _vector(facts, anchor.bias)
        operands = list(found.operands)
        arguments = (anchor.x, _weight(facts, anchor.kn), bias, str(found.epilogue), operands)
        kwargs: dict[str, Argument] = {} if numerics == "accurate" else {"numerics": numerics}
        if _needs_z(found):
            both = graph.call_function(
                torch.ops.fusepass.linear_with_preact.default, arguments, kwargs
            )
            out = graph.call_function(operator.getitem, (both, 0))
            preact = graph.call_function(operator.getitem, (both, 1))
            _describe(facts, both, anchor.gemm, (_like(anchor.gemm), _like(anchor.gemm)))
            _describe(facts, out, anchor.gemm, both.meta["val"][0])
            _describe(facts, preact, anchor.gemm, both.meta["val"][1])
            if anchor.z in facts.forward and weighed_by_partitioner(facts):
                preact = graph.call_function(aten.detach.default, (preact,))
                _describe(facts, preact, anchor.gemm, both.meta["val"][1])
        else:
            out = graph.call_function(torch.ops.fusepass.linear.default, arguments, kwargs)
            preact = None
            _describe(facts, out, anchor.gemm, _like(anchor.gemm))
        z = None if preact is None else _through(facts, preact, anchor.views)
    # Not earlier: the sizes that the views ask for may be computed behind z.
    with graph.inserting_before(found.exit):
        result = _through(facts, out, (*anchor.views, *found.views))
    _check_same(result, found.exit)
    whole = z is None or result_is_saved(found)
    for user in list(found.exit.users) if whole else facts.users_in_phase(found.exit):
        user.replace_input_with(found.exit, result)
    if z is not None:
        _check_same(z, anchor.z)
        anchor.z.replace_all_uses_with(z)
    dead = {anchor.gemm, *anchor.views, anchor.z, *found.inside, anchor.kn, *scalars}
    edit.discard(sorted(dead, reverse=True))


def _check_same(new: Node, old: Node) -> None:
    if (dtype_of(new), shape_of(new)) != (dtype_of(old), shape_of(old)):
        raise RuntimeError(f"{new.format_node()} is not of the type of {old.format_node()}")


def _scalars(facts: Graph, found: Match) -> set[Node]:
    """The nodes that only the replaced operators may have read: constants and their casts."""
    scalars: set[Node] = set()
    pending = [i for n in found.inside for i in n.all_input_nodes]
    while pending:
        node = pending.pop()
        if node not in scalars and node not in found.inside and node is not found.anchor.z:
            scalars.add(node)
            folded = is_cast(node) or facts.constant(node) is not None
            pending.extend(node.all_input_nodes if folded else ())
    return scalars - set(found.operands)


def _hoist(facts: Graph, nodes: Sequence[Node], before: Node) -> None:
    """Moves what the operands need, none of which depends on ``before``, in front of it."""
    late = facts.late(nodes, before)
    if before in late:
        raise RuntimeError(f"an operand of the op for {before} depends on it")
    for node in sorted(late):
        before.prepend(node)


def _weight(facts: Graph, kn: Node) -> Node:
    """The [N, K] weight that ``kn`` is the transpose of; a transpose of ``kn`` if it is none."""
    kind, args = packet(kn), kn.args
    if kind is aten.t or (kind is aten.permute and list(args[1]) == [1, 0]):  # type: ignore[arg-type]
        return args[0]  # type: ignore[return-value]
    weight = facts.graph.call_function(aten.permute.default, (kn, [1, 0]))
    value = tensor(kn)
    assert value is not None, "the GEMM's second matrix has a fake tensor"
    _describe(facts, weight, kn, value.t())
    return weight


def _vector(facts: Graph, bias: Node) -> Node:
    """``bias`` without the ones before its elements."""
    value = tensor(bias)
    assert value is not None, "a bias has a fake tensor"
    if value.dim() == 1:
        return bias
    vector = facts.graph.call_function(aten.view.default, (bias, [-1]))
    _describe(facts, vector, bias, value.view(-1))
    return vector


def _needs_z(found: Match) -> bool:
    """Whether anything uses z, or a value on the way, once every user of exit has the result."""
    if found.exit is found.anchor.z:
        return False
    dead = {found.exit}
    for node in reversed(found.inside):
        if all(u in dead for u in node.users):
            dead.add(node)
    return not all(u in dead for u in found.anchor.z.users)


def _through(facts: Graph, node: Node, views: Sequence[Node]) -> Node:
    """``node`` seen through copies of ``views``."""
    for view in views:
        source = node
        node = facts.graph.call_function(view.target, (source, *view.args[1:]), view.kwargs)  # type: ignore[arg-type]
        args = torch.fx.node.map_arg(node.args, lambda n: n.meta["val"])
        _describe(facts, node, view, view.target(*args, **view.kwargs))  # type: ignore[operator]
    return node


def _like(node: Node) -> torch.Tensor:
    """A contiguous (fake) tensor with the shape of ``node``'s."""
    value = tensor(node)
    assert value is not None, "a GEMM has a fake tensor"
    return torch.empty_like(value, memory_format=torch.contiguous_format)


def _describe(facts: Graph, node: Node, source: Node, value: Any) -> None:
    """Meta of ``source``, recompute tags of activation checkpointing among it, with ``value``."""
    node.meta = {k: v for k, v in source.meta.items() if k != "tensor_meta"}
    node.meta["val"] = value
    facts.announce(node, source)
