"""Rewrite: one op for a GEMM and its epilogue. The only code that edits a graph."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import Argument

from . import op as _op  # noqa: F401  (defines torch.ops.fusepass)
from .facts import Graph, is_cast, packet, tensor
from .match import Match
from .recompute import result_is_saved, weighed_by_partitioner

aten = torch.ops.aten


def replace(facts: Graph, found: Match, numerics: str, replaced: dict[Node, Node]) -> None:
    """Puts the fused op in front of z and hands its results to the users of exit and z.

    Args:
        facts: of the graph, which is edited in place.
        found: what to replace.
        numerics: the op's.
        replaced: exits and pre-activations replaced so far, by what; this site's are added.
    """
    graph, anchor = facts.graph, found.anchor
    # What the anchor reads may belong to a site that was replaced since it was matched.
    x, kn = (replaced.get(n, n) for n in (anchor.x, anchor.kn))
    bias = anchor.bias and replaced.get(anchor.bias, anchor.bias)
    operands = [replaced.get(n, n) for n in found.operands]
    scalars = _scalars(facts, found)
    _hoist(facts, operands, anchor.z)
    with graph.inserting_before(anchor.z):
        bias = bias and _vector(graph, bias)
        arguments = (x, _weight(graph, kn), bias, str(found.epilogue), operands)
        kwargs: dict[str, Argument] = {} if numerics == "accurate" else {"numerics": numerics}
        if _needs_z(found):
            both = graph.call_function(
                torch.ops.fusepass.linear_with_preact.default, arguments, kwargs
            )
            out = graph.call_function(operator.getitem, (both, 0))
            preact = graph.call_function(operator.getitem, (both, 1))
            _describe(both, anchor.gemm, (_like(anchor.gemm), _like(anchor.gemm)))
            _describe(out, anchor.gemm, both.meta["val"][0])
            _describe(preact, anchor.gemm, both.meta["val"][1])
            if weighed_by_partitioner(facts):
                preact = graph.call_function(aten.detach.default, (preact,))
                _describe(preact, anchor.gemm, both.meta["val"][1])
        else:
            out = graph.call_function(torch.ops.fusepass.linear.default, arguments, kwargs)
            preact = None
            _describe(out, anchor.gemm, _like(anchor.gemm))
        z = None if preact is None else _through(graph, preact, anchor.views)
    # Not earlier: the sizes that the views ask for may be computed behind z.
    with graph.inserting_before(found.exit):
        result = _through(graph, out, (*anchor.views, *found.views))
    whole = z is None or result_is_saved(found)
    for user in list(found.exit.users) if whole else facts.forward_users(found.exit):
        user.replace_input_with(found.exit, result)
    if z is not None:
        anchor.z.replace_all_uses_with(z)
        replaced[anchor.z] = z
    replaced[found.exit] = result
    _erase_dead(facts, [anchor.gemm, *anchor.views, anchor.z, *found.inside, anchor.kn, *scalars])


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
    for node in sorted(late, key=facts.order.__getitem__):
        before.prepend(node)
    if late:
        facts.order = {node: i for i, node in enumerate(facts.graph.nodes)}


def _weight(graph: torch.fx.Graph, kn: Node) -> Node:
    """The [N, K] weight that ``kn`` is the transpose of; a transpose of ``kn`` if it is none."""
    kind, args = packet(kn), kn.args
    if kind is aten.t or (kind is aten.permute and list(args[1]) == [1, 0]):  # type: ignore[arg-type]
        return args[0]  # type: ignore[return-value]
    weight = graph.call_function(aten.permute.default, (kn, [1, 0]))
    value = tensor(kn)
    assert value is not None, "the GEMM's second matrix has a fake tensor"
    _describe(weight, kn, value.t())
    return weight


def _vector(graph: torch.fx.Graph, bias: Node) -> Node:
    """``bias`` without the ones before its elements."""
    value = tensor(bias)
    assert value is not None, "a bias has a fake tensor"
    if value.dim() == 1:
        return bias
    vector = graph.call_function(aten.view.default, (bias, [-1]))
    _describe(vector, bias, value.view(-1))
    return vector


def _needs_z(found: Match) -> bool:
    """Whether anything uses z, or a value on the way, once every user of exit has the result."""
    dead = {found.exit}
    for node in reversed(found.inside):
        if all(u in dead for u in node.users):
            dead.add(node)
    return not all(u in dead for u in found.anchor.z.users)


def _through(graph: torch.fx.Graph, node: Node, views: Sequence[Node]) -> Node:
    """``node`` seen through copies of ``views``."""
    for view in views:
        source = node
        node = graph.call_function(view.target, (source, *view.args[1:]), view.kwargs)  # type: ignore[arg-type]
        args = torch.fx.node.map_arg(node.args, lambda n: n.meta["val"])
        _describe(node, view, view.target(*args, **view.kwargs))  # type: ignore[operator]
    return node


def _like(node: Node) -> torch.Tensor:
    """A contiguous (fake) tensor with the shape of ``node``'s."""
    value = tensor(node)
    assert value is not None, "a GEMM has a fake tensor"
    return torch.empty_like(value, memory_format=torch.contiguous_format)


def _describe(node: Node, source: Node, value: Any) -> None:
    """Meta of ``source``, recompute tags of activation checkpointing among it, with ``value``."""
    node.meta = {k: v for k, v in source.meta.items() if k != "tensor_meta"}
    node.meta["val"] = value


def _erase_dead(facts: Graph, nodes: Sequence[Node]) -> None:
    for node in sorted(set(nodes), key=facts.order.__getitem__, reverse=True):
        if not node.users and node.op in ("call_function", "get_attr"):
            facts.graph.erase_node(node)
