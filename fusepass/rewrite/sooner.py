"""A product that takes much memory beside its operands runs as soon as they are there.

A weight gradient reads the gradient of its layer's output, as does the product that makes the next
layer's, a matrix as large; autograd puts that one first. The weight gradient's pieces
(op/presplit.py) would then lie beside one matrix more.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, Node

from ..kernels.calls import calls_in, hint
from ..kernels.plan.f32 import takes_much
from ..op.presplit import splits


def run_sooner_in(graph: Graph) -> None:
    """Moves such calls up in ``graph``, functional ATen with fake tensors in ``meta["val"]``."""
    found = {
        c.node for c in calls_in(graph) if not c.guessed and takes_much(c.m, c.n, c.k) and splits(c)
    }
    for node in [node for node in graph.nodes if node.name in found]:
        if not _mutates(node):  # dying.py: others read what it writes over
            _move_up(graph, node)


def _move_up(graph: Graph, node: Node) -> None:
    """Behind the last of its operands, if something larger than its result is written between."""
    views, operands = _read(node)
    nodes = [*graph.nodes]
    place = {other: i for i, other in enumerate(nodes)}
    inputs = graph.find_nodes(op="placeholder")
    behind = max((*operands, *inputs[-1:]), key=lambda other: place[other])
    between = [n for n in nodes[place[behind] + 1 : place[node]] if n not in views]
    if any(map(_mutates, between)) or max(map(_bytes, between), default=0) <= _bytes(node):
        return
    late = [view for view in nodes[place[behind] :] if view in views]
    for moved in (*late, node):
        behind.append(moved)
        behind = moved


def _read(node: Node) -> tuple[set[Node], set[Node]]:
    """The views through which ``node`` reads, and what they are of."""
    views: set[Node] = set()
    operands: set[Node] = set()
    pending = [*node.all_input_nodes]
    while pending:
        other = pending.pop()
        if getattr(other.target, "is_view", False):
            views.add(other)
            pending += other.all_input_nodes
        else:
            operands.add(other)
    return views, operands


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _bytes(node: Node) -> int:
    """Of the largest tensor that it writes."""
    if node.op != "call_function" or getattr(node.target, "is_view", False):
        return 0
    val: Any = node.meta.get("val")
    tensors = val if isinstance(val, (tuple, list)) else (val,)
    sizes = (hint(t.numel()) * t.element_size() for t in tensors if hasattr(t, "element_size"))
    return max(sizes, default=0)
