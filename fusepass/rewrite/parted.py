"""Parted: one weight for queries, keys and values, as a product for each of them.

``q, k, v = split(x W^T)`` of which q and k are rotated is ``x Wq^T``, ``x Wk^T`` and ``x Wv^T``, of
those rows of W as they lie; then what follows one of them is its product's epilogue.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.utils._python_dispatch import _disable_current_modes

from ..kernels import parts_pay
from ..kernels.calls import hint
from ..match.anchor import Anchor
from ..match.epilogues import Match
from ..match.facts import Graph, is_view, packet, shape_of
from .added import describe, weight_of
from .transaction import Transaction

aten = torch.ops.aten

_RESHAPES = (aten.view, aten._unsafe_view, aten.reshape)
_SPLITS = (aten.split, aten.split_with_sizes, aten.unbind)
_PARTS = (aten.slice, aten.select)
_MOST = 4  # products of one


class Parted:
    """The products of the columns of one, where these are all that is used of it; to be kept or
    taken back.

    Attributes:
        gemms: the new products; none if there are no such columns.
    """

    def __init__(self, facts: Graph, anchor: Anchor) -> None:
        self.facts, self.anchor, self.gemms = facts, anchor, list[Node]()
        self._added: list[Node] = []
        self._moved: dict[Node, Node] = {}
        self._lay: list[tuple[Node, Any]] = []  # views, and their tensors before
        parts = _parts(facts, anchor)
        if parts is not None:
            self._part(*parts)

    def pays(self, found: Sequence[object]) -> bool:
        """Whether the sites of the new products are worth it, of which one at least is of heads.

        Args:
            found: for each what the pass decided of it.
        """
        texts = [str(f.epilogue) if isinstance(f, Match) else "" for f in found]
        if not any(isinstance(f, Match) and f.epilogue.head for f in found):
            return False
        x, columns = self.anchor.x.meta["val"], [shape_of(gemm)[1] for gemm in self.gemms]
        parts = tuple(zip(columns, texts, strict=True))
        return parts_pay(x.device, x.dtype, hint(x.shape[0]), hint(x.shape[1]), parts)

    def keep(self, edit: Transaction) -> None:
        """Discards the product whose columns are now computed otherwise."""
        dead, pending = set[Node](), [n for n in self._moved if not n.users]
        while pending:
            node = pending.pop()
            if node not in dead and all(user in dead for user in node.users):
                dead.add(node)
                pending += [n for n in node.all_input_nodes if n >= self.anchor.gemm]
        edit.discard(sorted(dead, reverse=True))

    def undo(self) -> None:
        """Makes the graph what it was."""
        for old, new in self._moved.items():
            new.replace_all_uses_with(old)
        for view, value in reversed(self._lay):
            view.meta["val"] = value
        for node in reversed(self._added):
            self.facts.forward.discard(node)
            self.facts.graph.erase_node(node)
        self.gemms, self._added, self._moved, self._lay = [], [], {}, []

    def _part(self, whole: Node, ranges: dict[Node, tuple[int, int]]) -> None:
        anchor, gemm = self.anchor, self.anchor.gemm
        with self.facts.graph.inserting_before(gemm.next):
            weight = self._noted(gemm, lambda: weight_of(self.facts, anchor.kn))
            products: dict[tuple[int, int], Node] = {}
            for columns in sorted(set(ranges.values())):
                rows = self._call(aten.slice.Tensor, [weight, 0, *columns], weight)
                kn = self._call(aten.permute.default, [rows, [1, 0]], rows)
                args = [anchor.x, kn]
                if anchor.bias is not None:
                    args.insert(0, self._call(aten.slice.Tensor, [anchor.bias, 0, *columns], gemm))
                products[columns] = self._call(gemm.target, args, gemm)
            self.gemms = list(products.values())
        sizes = [-1] if whole is gemm else list(whole.args[1][:-1])  # type: ignore[index]
        rank = len(shape_of(whole)) - 1
        for part, columns in ranges.items():
            with self.facts.graph.inserting_before(part.next):
                node, width = products[columns], columns[1] - columns[0]
                if whole is not gemm:
                    node = self._call(aten.view.default, [node, [*sizes, width]], whole)
                tail = shape_of(part)[rank:]
                if tail != (width,):
                    node = self._call(aten.view.default, [node, [*sizes, *tail]], part)
            part.replace_all_uses_with(node)
            self._moved[part] = node
            self._lay_anew(node)

    def _lay_anew(self, node: Node) -> None:
        """Tells views of ``node``, which lies by itself now, where they lie."""
        for view in node.users:
            if is_view(view) and packet(view) is not aten.clone:
                args, kwargs = torch.fx.node.map_arg(
                    (view.args, view.kwargs), lambda n: n.meta["val"]
                )
                self._lay.append((view, view.meta["val"]))
                view.meta["val"] = view.target(*args, **kwargs)  # type: ignore[operator]
                self._lay_anew(view)

    def _noted(self, gemm: Node, make: Callable[[], Node]) -> Node:
        """What ``make`` gives, which it may have added."""
        before = gemm.next
        node = make()
        if gemm.next is not before:
            self._added.append(node)
        return node

    def _call(self, target: Any, args: list[Any], like: Node) -> Node:
        node = self.facts.graph.call_function(target, tuple(args))
        described = torch.fx.node.map_arg(node.args, lambda n: n.meta["val"])
        describe(self.facts, node, like, target(*described))
        self._added.append(node)
        return node


def _parts(facts: Graph, anchor: Anchor) -> tuple[Node, dict[Node, tuple[int, int]]] | None:
    """The last node that has all columns of the product, and of which columns those that are views
    of it are: each column of one, or of several that are the same."""
    gemm, width = anchor.gemm, shape_of(anchor.gemm)[1]
    if facts.has_backward or anchor.blocked or anchor.z is not gemm or not isinstance(width, int):
        return None
    if anchor.bias is not None and len(shape_of(anchor.bias)) != 1:
        return None
    whole = _whole(gemm, width)
    rank, found = len(shape_of(whole)) - 1, dict[Node, tuple[int, int]]()
    for steps in _ways(whole, rank):
        columns = _columns(steps, rank, width)
        if columns is None or _is_returned(steps[-1]):
            return None
        found[steps[-1]] = columns
    ends = sorted(set(found.values()))
    met = all(a[1] == b[0] for a, b in zip([(0, 0), *ends], [*ends, (width, width)], strict=True))
    return (whole, found) if met and 1 < len(ends) <= _MOST else None


def _whole(gemm: Node, width: int) -> Node:
    """The last of the reshapes of ``gemm`` that alone use it and keep its columns."""
    node = gemm
    while len(node.users) == 1:
        (user,) = node.users
        if packet(user) not in _RESHAPES or shape_of(user)[-1] != width:
            break
        node = user
    return node


def _ways(whole: Node, rank: int) -> Iterator[list[Node]]:
    """The views on the way to each node that is a part of ``whole``'s columns, ``rank`` dimensions
    before these; a way that is none ends in what has all columns."""
    pending: list[list[Node]] = [[user] for user in whole.users]
    while pending:
        steps = pending.pop()
        node = steps[-1]
        if packet(node) in _SPLITS or (packet(node) in _RESHAPES and node.users):
            pending += [[*steps, user] for user in node.users]
        else:
            yield steps


def _columns(steps: list[Node], rank: int, width: int) -> tuple[int, int] | None:
    """From which to which of ``width`` columns the last of ``steps``, behind ``rank`` dimensions,
    is; None if these are not the columns of one range, in order."""
    (kind, item), shape = (packet(steps[-1]), steps[-1].target), shape_of(steps[-1])
    if kind not in _PARTS and item is not operator.getitem:
        return None
    if not all(isinstance(size, int) for size in shape[rank:]):
        return None
    with _disable_current_modes():
        values = torch.arange(width).view(*[1] * rank, width)
        for node in steps:
            moved = _applied(node, values, rank)
            if moved is None:
                return None
            values = moved
        flat = values.flatten()
        start, end = int(flat[0]), int(flat[0]) + len(flat)
        same = torch.equal(flat, torch.arange(start, end)) if len(flat) else False
    return (start, end) if same and tuple(values.shape[rank:]) == shape[rank:] else None


def _applied(node: Node, values: Any, rank: int) -> Any:
    """What ``node`` makes of the numbers of columns, or None if it touches what is before them."""
    if node.target is operator.getitem:
        return values[node.args[1]]
    args: list[Any] = list(node.args[1:])
    if node.kwargs:
        return None
    if packet(node) in _RESHAPES:
        sizes = args[0]
        if len(sizes) <= rank or not all(isinstance(s, int) for s in sizes[rank:]):
            return None
        source = node.args[0]
        if shape_of(node)[:rank] != shape_of(source)[:rank]:  # type: ignore[arg-type]
            return None
        return values.view(*[1] * rank, *shape_of(node)[rank:])
    place = 1 if packet(node) in (aten.split, aten.split_with_sizes) else 0
    dim = args[place] if len(args) > place else 0
    if not isinstance(dim, int) or dim % values.dim() < rank:
        return None
    return node.target(values, *args)  # type: ignore[operator]


def _is_returned(node: Node) -> bool:
    """Whether the graph returns ``node``, or a view of it, which lies as it does."""
    pending = [node]
    while pending:
        for user in pending.pop().users:
            if user.op == "output":
                return True
            if is_view(user) or packet(user) in _PARTS or packet(user) is aten.expand:
                pending.append(user)
    return False
