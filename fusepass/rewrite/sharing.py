"""What several products read is split once: a pass over the graphs that Inductor is about to lower.

x of the query, key and value projections, and of their weight gradients, is one matrix; split by
each product it would be read and written anew. Forward and backward are graphs of their own by
then: no split lives from one to the other, and the partitioner has never seen it. A split is kept
from one product to the next only if they are near: memory holds pieces as large as x meanwhile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.fx_utils import get_node_storage
from torch.fx import Graph, Node

from ..kernels.calls import calls_in
from ..match.facts import packet
from ..op.presplit import is_packaged, splits
from ..report import log
from .dying import consume_in
from .sooner import run_sooner_in

_NEAR = 24  # nodes between two products

Key = tuple[Any, ...]


class SharedSplits(CustomGraphPass):
    """Gives calls of the op that read one matrix one split of it; see dying.py and sooner.py, too.

    Use as ``torch._inductor.config.post_grad_custom_post_pass``.
    """

    def __call__(self, graph: Graph) -> None:
        try:
            share_in(graph)
            consume_in(graph)
            run_sooner_in(graph)
        except Exception:  # whatever it is, it is not the model's fault; every call is still right
            log.warning("no split is shared, because fusepass failed", exc_info=True)

    def uuid(self) -> Any:
        """As ``FusePass``'s: a hash of fusepass's sources."""
        from .graph_pass import FusePass

        return f"splits, {FusePass().uuid()}"


def share_in(graph: Graph) -> None:
    """Rewrites ``graph``, functional ATen with fake tensors in ``meta["val"]``, in place."""
    if is_packaged():
        return
    splitting = {c.node for c in calls_in(graph) if not c.guessed and splits(c)}
    groups: list[list[tuple[Node, int]]] = []  # of uses: a call and which of its arguments
    latest: dict[Key, tuple[int, list[tuple[Node, int]]]] = {}
    for place, node in enumerate(graph.nodes):
        if node.name not in splitting or packet(node) is not torch.ops.fusepass.linear:
            continue  # the general op takes no splits
        for argument in (0, 1):
            if node.target is torch.ops.fusepass.linear.split and node.args[5 + argument]:
                continue  # a constant, presplit.py
            key = _matrix(node.args[argument])
            before, uses = latest.get(key, (-_NEAR - 1, []))
            if place - before > _NEAR:
                uses = []
                groups.append(uses)
            uses.append((node, argument))
            latest[key] = place, uses
    for uses in groups:
        if len(uses) > 1:
            _share(graph, uses)


def _matrix(node: Any) -> Key:
    """Equal for equal views of the same memory."""
    val = node.meta["val"]
    return get_node_storage(node), val.storage_offset(), tuple(val.shape), tuple(val.stride())


def _share(graph: Graph, uses: list[tuple[Node, int]]) -> None:
    first, argument = uses[0]
    matrix = first.args[argument]
    assert isinstance(matrix, Node)
    with graph.inserting_before(first):
        split = graph.call_function(torch.ops.fusepass.split.default, (matrix,))
    split.meta["val"] = torch.ops.fusepass.split.default(matrix.meta["val"])
    for node, place in uses:
        if node.target is not torch.ops.fusepass.linear.split:
            operands = node.args[4] if len(node.args) > 4 else []
            node.target = torch.ops.fusepass.linear.split
            node.args = (*node.args[:4], operands, None, None)
            node.kwargs = {}
        node.update_arg(5 + place, split)
