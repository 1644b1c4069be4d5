"""Turned: operators that take a Linear's result in another order of dimensions, beside tensors.

``z.permute(0, 3, 1, 2) * gamma + x``, as models of convolutions have it, is the permutation of what
``z * gamma.permute(0, 2, 3, 1) + x.permute(0, 2, 3, 1)`` is: the same numbers in the same memory,
and z's rows lie there as an epilogue reads them.
"""

from __future__ import annotations

import heapq
from typing import Any

import torch
from torch.fx import Node

from ..match.epilogues import Match
from ..match.facts import (
    Graph,
    dtype_of,
    is_cast,
    is_pointwise,
    is_view,
    numel_is_one,
    packet,
    shape_of,
    tensor,
)
from ..match.order import lie_alike
from .added import describe
from .transaction import Transaction

aten = torch.ops.aten

_FAR = 32  # nodes that are looked at behind z
_RESHAPES = (aten.view, aten._unsafe_view, aten.reshape, aten.alias, aten.detach)


class Turned:
    """Operators behind a permutation of ``z``, put in front of it; to be kept or taken back.

    Attributes:
        added: the new nodes; none if there are no such operators, or nothing would be gained.
    """

    def __init__(self, facts: Graph, z: Node) -> None:
        self.facts, self.added = facts, list[Node]()
        self._cut: list[tuple[Node, Any, Any]] = []
        self._moved: dict[Node, Node] = {}
        for permute in _permutations(facts, z):
            nodes = _behind(facts, permute)
            if any(_tensors(node, permute, nodes) for node in nodes):
                self._turn(permute, nodes)
                break

    def helps(self, found: object) -> bool:
        """Whether a site has any of the new nodes in it."""
        return isinstance(found, Match) and not set(self.added).isdisjoint(found.inside)

    def keep(self, edit: Transaction) -> None:
        """Discards the nodes whose values are now computed otherwise."""
        edit.discard(sorted((node for node, *_ in self._cut), reverse=True))

    def undo(self) -> None:
        """Makes the graph what it was."""
        for node, args, kwargs in self._cut:
            node.args, node.kwargs = args, kwargs
        for old, new in self._moved.items():
            new.replace_all_uses_with(old)
        for node in reversed(self.added):
            self.facts.forward.discard(node)
            self.facts.graph.erase_node(node)
        self.added, self._cut, self._moved = [], [], {}

    def _turn(self, permute: Node, nodes: list[Node]) -> None:
        """Computes ``nodes`` in the order in front of ``permute``, and hands the results on."""
        source, dims = permute.args[0], _dims(permute)
        values: dict[Node, Node] = {permute: source}  # type: ignore[dict-item]
        for node in nodes:
            with self.facts.graph.inserting_before(node.next):
                args = [self._turned(a, dims, values) for a in node.args]
                values[node] = self._call(node.target, args, node.kwargs, node)
                if any(user not in nodes for user in node.users):
                    back = self._call(aten.permute.default, [values[node], dims], {}, node)
                    self._moved[node] = back
        if not all(_is_same(old, new) for old, new in self._moved.items()):
            self._moved = {}
            return self.undo()
        for old, new in self._moved.items():
            old.replace_all_uses_with(new, lambda user: user not in nodes)
        for node in reversed([permute, *nodes]):
            if not node.users:
                self._cut.append((node, node.args, node.kwargs))
                node.args, node.kwargs = (), {}
        return None

    def _turned(self, arg: Any, dims: list[int], values: dict[Node, Node]) -> Any:
        """An argument of an operator behind the permutation as one in front of it takes it."""
        value = tensor(arg) if isinstance(arg, Node) else None
        if arg in values or value is None or numel_is_one(arg):
            return values.get(arg, arg) if isinstance(arg, Node) else arg
        if packet(arg) is aten.permute and _dims(arg) == dims:
            return arg.args[0]
        for _ in range(len(dims) - value.dim()):
            arg = self._call(aten.unsqueeze.default, [arg, 0], {}, arg)
        inverse = [dims.index(i) for i in range(len(dims))]
        return self._call(aten.permute.default, [arg, inverse], {}, arg)

    def _call(self, target: Any, args: list[Any], kwargs: Any, like: Node) -> Node:
        node = self.facts.graph.call_function(target, tuple(args), kwargs)
        fakes, named = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        describe(self.facts, node, like, target(*fakes, **named))
        self.added.append(node)
        return node


def _permutations(facts: Graph, z: Node) -> list[Node]:
    """The permutations behind ``z`` that put another dimension where its columns were."""
    pending, found = [z], list[Node]()
    for node in pending:
        for user in facts.users_in_phase(node):
            if packet(user) is aten.permute and _dims(user)[-1] != len(_dims(user)) - 1:
                found.append(user)
            elif len(pending) < _FAR and user not in pending and _keeps_rows(user, z):
                pending.append(user)
    return found


def _keeps_rows(node: Node, z: Node) -> bool:
    kept = is_pointwise(node) or is_cast(node) or packet(node) in _RESHAPES
    return kept and shape_of(node)[-1:] == shape_of(z)[-1:]


def _behind(facts: Graph, permute: Node) -> list[Node]:
    """The operators of ``permute``'s shape behind it, each of them or of values without it."""
    pending, nodes = list(facts.users_in_phase(permute)), list[Node]()
    heapq.heapify(pending)  # nodes compare by their place in the graph
    while pending and len(nodes) < _FAR:
        node = heapq.heappop(pending)
        if node in nodes or not _is_operator(node, permute):
            continue
        others = _tensors(node, permute, nodes)
        if any(facts.depends_on(other, permute) for other in others):
            continue
        nodes.append(node)
        for user in facts.users_in_phase(node):
            heapq.heappush(pending, user)
    return nodes


def _is_operator(node: Node, permute: Node) -> bool:
    computes = (is_pointwise(node) or is_cast(node)) and not is_view(node)
    plain = all(not isinstance(a, (list, tuple)) for a in node.args) and not any(
        isinstance(a, Node) for a in node.kwargs.values()
    )
    return computes and plain and shape_of(node) == shape_of(permute)


def _tensors(node: Node, permute: Node, nodes: list[Node]) -> list[Node]:
    """What ``node`` reads beside ``permute`` and ``nodes``, of several elements."""
    others = [i for i in node.all_input_nodes if i is not permute and i not in nodes]
    return [i for i in others if tensor(i) is not None and not numel_is_one(i)]


def _is_same(old: Node, new: Node) -> bool:
    """Whether both are of one type and lie alike in memory."""
    same = dtype_of(old) is dtype_of(new) and shape_of(old) == shape_of(new)
    return same and lie_alike(old, new)


def _dims(permute: Node) -> list[int]:
    dims = permute.args[1]
    assert isinstance(dims, (list, tuple))
    return [int(d) % len(dims) for d in dims]  # type: ignore[call-overload,arg-type]
