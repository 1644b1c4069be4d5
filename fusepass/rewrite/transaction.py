"""Transaction: the edits of one pass over a graph, kept whole or taken back whole."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch.fx import Node


class Transaction:
    """What a graph was before it was edited.

    Edit the graph as usual, but leave what becomes dead to ``discard``: a node once erased cannot
    come back. Then ``commit`` or ``roll_back``; both are linear in the graph.
    """

    def __init__(self, graph: torch.fx.Graph) -> None:
        self.graph = graph
        self._before = [(n, n.target, n.args, n.kwargs, list(n.users)) for n in graph.nodes]
        self._dead: list[Node] = []

    def discard(self, nodes: Iterable[Node]) -> None:
        """Cuts those of ``nodes`` that nobody reads off from the graph; ``commit`` erases them.

        Args:
            nodes: each behind everything in them that reads it.
        """
        for node in nodes:
            if not node.users and node.op in ("call_function", "get_attr"):
                node.args, node.kwargs = (), {}
                self._dead.append(node)

    def commit(self) -> None:
        """Erases what was discarded.

        Raises:
            RuntimeError: if the graph is no graph any more; nothing is erased then.
        """
        self.graph.lint()
        for node in self._dead:
            self.graph.erase_node(node)

    def roll_back(self) -> None:
        """Makes the graph what it was: the same nodes in the same order with the same arguments."""
        for node, target, args, kwargs, _ in self._before:
            node.target, node.args, node.kwargs = target, args, kwargs
        kept = [node for node, *_ in self._before]
        added = set(self.graph.nodes).difference(kept)
        for node in added:
            node.args, node.kwargs = (), {}
        for node in added:
            self.graph.erase_node(node)
        for before, after in pairwise(kept):
            if before.next is not after:
                before.append(after)
        for node, *_, users in self._before:
            node.users.clear()
            node.users.update(dict.fromkeys(users))
