"""Parted: one weight for queries, keys and values, as a product for each of them.

``q, k, v = split(x W^T)`` of which q and k are rotated is ``x Wq^T``, ``x Wk^T`` and ``x Wv^T``, of
those rows of W as they lie; then what follows one of them is its product's epilogue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from ..kernels import parts_pay
from ..kernels.calls import hint
from ..match.anchor import Anchor, read_anchor
from ..match.columns import columns_of, is_negated
from ..match.epilogues import Match
from ..match.facts import Graph, is_view, packet, shape_of
from ..match.followers import NoMatch
from ..report import Miss, Site
from .added import describe, weight_of
from .claims import claim
from .decision import has_kernel
from .transaction import Transaction

aten = torch.ops.aten


def parted(
    facts: Graph,
    anchor: Anchor,
    numerics: str,
    edit: Transaction,
    decide: Callable[[Graph, Anchor, str, Transaction], Match | NoMatch],
) -> list[Node]:
    """The products of ``anchor``'s columns, which have taken its place where that is as fast; none
    if they have not.

    Args:
        facts: of the graph as it is.
        anchor: a GEMM.
        numerics: ``accurate`` or ``bitwise``, which has but one product.
        edit: of the graph.
        decide: what becomes of a GEMM of the graph.
    """
    if numerics != "accurate" or claim(anchor.gemm) or not has_kernel(anchor):
        return []
    parts = Parted(facts, anchor)
    found = [decide(facts, read_anchor(facts, g, numerics), numerics, edit) for g in parts.gemms]
    if parts.pays(found):
        parts.keep(edit)
    else:
        parts.undo()
    return parts.gemms


def named(
    sites: Iterable[Site], misses: Iterable[Miss], origin: Mapping[str, str]
) -> tuple[list[Site], list[Miss]]:
    """What is said of a graph's products, where those of ``origin`` are called as what they were
    parts of."""

    def name(node: str) -> str:
        return origin.get(node, node)

    return (
        [replace(s, node=name(s.node), nodes=tuple(map(name, s.nodes))) for s in sites],
        [replace(m, node=name(m.node), gemm=m.gemm and name(m.gemm)) for m in misses],
    )


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
        parts = columns_of(facts, anchor)
        if parts is not None and any(map(is_negated, parts[1])):
            self._part(*parts)

    def pays(self, found: Sequence[object]) -> bool:
        """Whether the sites of the new products are worth it, of which one at least is of heads.

        Args:
            found: for each what the pass decided of it.
        """
        texts = [str(f.epilogue) if isinstance(f, Match) else "" for f in found]
        if not any(isinstance(f, Match) and f.epilogue.heads.columns for f in found):
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
        edit.discard([*sorted(dead, reverse=True), self.anchor.kn])

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
        sizes: list[Any] = [-1]
        if whole is not gemm:
            *sizes, _ = whole.args[1]  # type: ignore[misc, union-attr, str-unpack]
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
