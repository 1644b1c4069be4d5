"""The nodes that a rewrite adds around the op: transposes, reshapes, sizes, and what they are; and
where those that it needs stand."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.fx import Node

from ..match.anchor import View
from ..match.facts import Graph, dtype_of, packet, shape_of, tensor

aten = torch.ops.aten


def reshaped_to(facts: Graph, node: Node, sizes: list[Any], shape: Any) -> Node:
    view = facts.graph.call_function(aten.view.default, (node, sizes))
    describe(facts, view, node, node.meta["val"].view(shape))
    return view


def summed_as(facts: Graph, sums: Node, node: Node) -> Node:
    """``sums``, [N], in the shape of ``node``, which may have ones before it."""
    shape = shape_of(node)
    return sums if len(shape) == 1 else reshaped_to(facts, sums, list(shape), shape)


def size_of(facts: Graph, node: Node, dim: int) -> Node:
    size = facts.graph.call_function(aten.sym_size.int, (node, dim))
    describe(facts, size, node, node.meta["val"].shape[dim])
    return size


def check_same(new: Node, old: Node) -> None:
    if (dtype_of(new), shape_of(new)) != (dtype_of(old), shape_of(old)):
        raise RuntimeError(f"{new.format_node()} is not of the type of {old.format_node()}")


def weight_of(facts: Graph, kn: Node) -> Node:
    """The [N, K] weight that ``kn`` is the transpose of; a transpose of ``kn`` if it is none."""
    kind, args = packet(kn), kn.args
    if kind is aten.t or (kind is aten.permute and list(args[1]) == [1, 0]):  # type: ignore[arg-type]
        return args[0]  # type: ignore[return-value]
    weight = facts.graph.call_function(aten.permute.default, (kn, [1, 0]))
    value = tensor(kn)
    assert value is not None, "the GEMM's second matrix has a fake tensor"
    describe(facts, weight, kn, value.t())
    return weight


def vector_of(facts: Graph, bias: Node) -> Node:
    """``bias`` without the ones before its elements."""
    value = tensor(bias)
    assert value is not None, "a bias has a fake tensor"
    if value.dim() == 1:
        return bias
    vector = facts.graph.call_function(aten.view.default, (bias, [-1]))
    describe(facts, vector, bias, value.view(-1))
    return vector


def by_rows(facts: Graph, node: Node, order: Sequence[int]) -> Node:
    """A matrix of one head, which broadcasts with z seen by heads in ``order``, as [..., D] beside
    z's rows."""
    value = tensor(node)
    assert value is not None, "an operand has a fake tensor"
    inverse, missing = [order.index(i) for i in range(len(order))], len(order) - value.dim()
    unsqueezed: list[tuple[Any, tuple[Any, ...]]] = [(aten.unsqueeze.default, (0,))] * missing
    steps = [(aten.permute.default, (inverse,)), (aten.squeeze.dim, (len(order) - 2,))]
    for target, args in [*unsqueezed, *steps]:
        source, value = node, target(value, *args)
        node = facts.graph.call_function(target, (source, *args))
        describe(facts, node, source, value)
    return node


def through(facts: Graph, node: Node, views: Iterable[View]) -> Node:
    """``node`` seen through copies of ``views``."""
    for view, more in views:
        source = node
        node = facts.graph.call_function(view.target, (source, *more), view.kwargs)  # type: ignore[arg-type]
        args = torch.fx.node.map_arg(node.args, lambda n: n.meta["val"])
        describe(facts, node, view, view.target(*args, **view.kwargs))  # type: ignore[operator]
    return node


def item_of(facts: Graph, results: Node, index: int, like: Node) -> Node:
    """One of an op's several results."""
    item = facts.graph.call_function(operator.getitem, (results, index))
    describe(facts, item, like, results.meta["val"][index])
    return item


def named(facts: Graph, result: Node, like: Node) -> Node:
    """``result`` by a name that the partitioner takes for a value that is stored, as a GEMM's is
    (recompute.py)."""
    node = facts.graph.call_function(aten.detach.default, (result,))
    describe(facts, node, like, result.meta["val"])
    return node


def hoist(facts: Graph, nodes: Sequence[Node], before: Node) -> None:
    """Moves what the operands need, none of which depends on ``before``, in front of it."""
    late = facts.late(nodes, before)
    if before in late:
        raise RuntimeError(f"an operand of the op for {before} depends on it")
    for node in sorted(late):
        before.prepend(node)


def contiguous_like(node: Node) -> torch.Tensor:
    """A contiguous (fake) tensor with the shape of ``node``'s."""
    value = tensor(node)
    assert value is not None, "a GEMM has a fake tensor"
    return torch.empty_like(value, memory_format=torch.contiguous_format)


def describe(facts: Graph, node: Node, source: Node, value: Any) -> None:
    """Meta of ``source``, recompute tags of activation checkpointing among it, with ``value``."""
    node.meta = {k: v for k, v in source.meta.items() if k != "tensor_meta"}
    node.meta["val"] = value
    facts.announce(node, source)
