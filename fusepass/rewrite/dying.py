"""A product whose pieces take much memory writes them over an x that nobody reads again.

That is a weight gradient's x, the gradient of its layer's output, unless the next layer's gradient
comes after it; op/consuming.py says what the call then does. It is taken where pieces of both
operands have room in the output, which is as large at least, and in what x leaves free.
"""

from __future__ import annotations

import operator

import torch
from torch._inductor.fx_utils import get_node_storage
from torch.fx import Graph, Node

from ..kernels.calls import Call, calls_in
from ..kernels.plan.f32 import has_room_in_its_output
from ..match.facts import packet
from ..op.presplit import is_packaged, splits

aten = torch.ops.aten
_LINEAR = torch.ops.fusepass.linear
_OURS = (_LINEAR, torch.ops.fusepass.linear_with_preact, torch.ops.fusepass.gemm)
_PRODUCTS = (*_OURS, aten.mm, aten.addmm)
# Of these Inductor makes memory of its own; a copy it might leave out.
_FRESH = (*_PRODUCTS, aten.mul, aten.add, aten.sub, aten.div, aten.where)
_READERS = (*_PRODUCTS, aten.sum)  # and of these nothing that is x's memory


def consume_in(graph: Graph) -> None:
    """Lets such calls of ``graph``, ATen with fake tensors in ``meta["val"]``, write over x."""
    if is_packaged():
        return
    found = {c.node for c in calls_in(graph) if _may_write(c)}
    for node in [node for node in graph.nodes if node.name in found]:
        later = _later_sums(graph, node)
        if later is None:
            continue
        for other in later:
            node.prepend(other)
        operands = node.args[4] if len(node.args) > 4 else []
        node.target = _LINEAR.consuming
        node.args, node.kwargs = (*node.args[:4], operands), {}


def _may_write(call: Call) -> bool:
    in_columns = call.x_is_km and call.w_is_kn
    much = in_columns and not call.guessed and has_room_in_its_output(call.m, call.n, call.k)
    return much and splits(call)


def _later_sums(graph: Graph, node: Node) -> list[Node] | None:
    """Sums, as a bias's gradient is, that read x behind ``node`` and may run before it.

    None if anything else reads it there, or the memory of x is not the graph's own.
    """
    if packet(node) is not _LINEAR or node.target is _LINEAR.split:
        return None
    memory = get_node_storage(node.args[0])  # type: ignore[arg-type]
    same = [n for n in graph.nodes if memory is not None and get_node_storage(n) == memory]
    own = bool(same) and all(_is_view(n) or _is_fresh(n) for n in same)
    readers = {user for n in same for user in n.users if user not in same}
    if not own or any(packet(reader) not in _READERS for reader in readers):
        return None
    if any(other in same for other in node.all_input_nodes if other is not node.args[0]):
        return None
    place = {other: i for i, other in enumerate(graph.nodes)}
    later = sorted((r for r in readers if place[r] > place[node]), key=lambda r: place[r])
    made = all(place[i] < place[node] for other in later for i in other.all_input_nodes)
    return later if made and all(packet(other) is aten.sum for other in later) else None


def _is_view(node: Node) -> bool:
    return node.op == "call_function" and bool(getattr(node.target, "is_view", False))


def _is_fresh(node: Node) -> bool:
    if node.target is operator.getitem:
        node = node.args[0]  # type: ignore[assignment]
    return packet(node) in _FRESH
