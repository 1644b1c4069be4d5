"""Sisters: Linears of one x without epilogues, as those of queries, keys and values, in one launch.

They are looked for when each product of a graph has been decided: a site with an epilogue is one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from ..kernels import linears_together
from ..kernels.calls import MAX_WEIGHTS, Call
from ..kernels.linears import Together
from ..match.anchor import Anchor, read_anchor
from ..match.epilogues import Match, bare
from ..match.facts import Graph, has_a_place, is_awaited, origin
from ..match.followers import NoMatch
from ..match.gemms import is_kernel, is_ours, is_product, is_whole_layer
from ..report import Miss, Site
from .added import (
    check_same,
    contiguous_like,
    describe,
    hoist,
    item_of,
    named,
    through,
    vector_of,
    weight_of,
)
from .claims import claim
from .decision import ALONE, call_of, is_narrow, kernel_objection
from .recompute import weighed_by_partitioner
from .transaction import Transaction

_OP = torch.ops.fusepass.linear.default


@dataclass(frozen=True)
class Decided:
    """What has been decided of a product.

    Attributes:
        entry: of the report.
        node: what computes it, if it has no epilogue: the op, or the GEMM that is left.
        behind: why it has none.
    """

    entry: Site | Miss
    node: Node | None
    behind: NoMatch | None


@dataclass(frozen=True)
class _Sister:
    """One of ``Decided`` that might run with others; ``anchor`` of a GEMM that is left."""

    index: int
    node: Node
    call: Call
    anchor: Anchor | None

    @property
    def x(self) -> Node:
        x = self.node.args[0] if self.anchor is None else self.anchor.x
        assert isinstance(x, Node), "a product has two matrices"
        return x

    @property
    def needs(self) -> list[Node]:
        """Its weight, transposed or not, and its bias."""
        read = self.node.args[1:3] if self.anchor is None else (self.anchor.kn, self.anchor.bias)
        return [n for n in read if isinstance(n, Node)]


def join(
    facts: Graph,
    decided: Sequence[Decided],
    edit: Transaction,
    site: Callable[[Graph, Match, Anchor], Site],
) -> list[Decided]:
    """``decided``, where products of one x have become one op if that is faster.

    Args:
        facts: of the graph as it is.
        decided: of all its products, in their order.
        edit: of the graph.
        site: what is reported of a product without an epilogue.
    """
    result = list(decided)
    for group in _groups(facts, decided):
        first = group[0].call
        widths = tuple(sister.call.n for sister in group)
        what = (first.device, first.dtype, first.m, widths, first.k, first.w_is_kn, first.x_is_km)
        together = linears_together(*what)
        for sister in group:
            old, others = decided[sister.index], [s for s in group if s is not sister]
            names = " and ".join(f"`{_name(decided[s.index].entry)}`" for s in others)
            entry = old.entry
            if together is None or not together.one:
                entry = replace(entry, apart=_apart(names, together))
            else:
                if isinstance(entry, Miss):
                    assert sister.anchor is not None, "of a product that is left"
                    slow = entry.reason.startswith(ALONE)  # by itself
                    found = bare(sister.anchor, None if slow else old.behind)
                    entry = site(facts, found, sister.anchor)
                kernel, why = f"one launch with {names}", _why(together)
                entry = replace(entry, kernel=kernel, why=why, together=len(group))
            result[sister.index] = replace(old, entry=entry)
        if together is not None and together.one:
            _replace(facts, group, edit)
    return result


# --- what is said of them -------------------------------------------------------------------------


def _name(entry: Site | Miss) -> str:
    """The layer's own name in the module that it is a part of."""
    return (entry.module or "").rpartition(".")[2] or entry.node


def _why(together: Together) -> str:
    one, apart = (f"{s * 1e6:.4g} us" for s in (together.seconds, together.apart))
    return f"that takes {one}, by the model; one after the other takes {apart}"


def _apart(names: str, together: Together | None) -> str:
    if together is None:
        return f"not in one launch with {names}: no kernel takes several weights of these sizes"
    return f"not in one launch with {names}, because {_why(together)}"


# --- which they are -------------------------------------------------------------------------------


def _groups(facts: Graph, decided: Sequence[Decided]) -> list[list[_Sister]]:
    """Products of one x near one another, in the order of the graph: two to four each."""
    by_x: dict[Hashable, list[_Sister]] = {}
    for index, one in enumerate(decided):
        sister = None if one.node is None else _sister(facts, index, one.node)
        if sister is not None:
            by_x.setdefault(_key(sister), []).append(sister)
    groups: list[list[_Sister]] = []
    for sisters in by_x.values():
        group: list[_Sister] = []
        for sister in sorted(sisters, key=lambda s: s.node):
            if group and not (len(group) < MAX_WEIGHTS and _joins(facts, group, sister)):
                groups.append(group)
                group = []
            group.append(sister)
        groups.append(group)
    return [group for group in groups if len(group) > 1]


def _sister(facts: Graph, index: int, node: Node) -> _Sister | None:
    """``node`` as one, if it is of the forward and of 16 bits and a kernel of ours could run it."""
    if node not in facts.forward or not node.users:
        return None
    if node.target is _OP:  # nothing was against that
        x, weight, bias = node.args[:3]
        assert isinstance(x, Node) and isinstance(weight, Node)
        value = weight.meta["val"]
        what = (value.shape, value.stride(), "", False, "accurate", bias is not None)
        call = Call.of(node.name, x.meta["val"], *what)
        return _Sister(index, node, call, None) if is_narrow(node) and not call.guessed else None
    anchor = read_anchor(facts, node, "accurate")
    against = anchor.blocked or claim(node) or kernel_objection(anchor, "accurate")
    if against is not None or not is_narrow(anchor.z) or anchor.z not in facts.forward:
        return None
    return _Sister(index, node, call_of(anchor, "", "accurate"), anchor)


def _key(sister: _Sister) -> Hashable:
    """Equal for products of one x that nothing else keeps apart: the order of their weights, what
    activation checkpointing has recomputed, a launch's device."""
    call, meta = sister.call, sister.node.meta
    tags = (meta.get("recompute"), meta.get("ac_graph_id"))
    return (origin(sister.x), call.dtype, call.device, call.w_is_kn, call.x_is_km, tags)


def _joins(facts: Graph, group: Sequence[_Sister], sister: _Sister) -> bool:
    """Whether ``sister`` can be computed as early as the first of ``group``, and no other product
    or attention is between: its result would have to be kept meanwhile."""
    of_x = origin(sister.x)
    node = group[-1].node.next
    while node is not sister.node:
        heavy = is_product(node) or is_ours(node) or is_kernel(node) or is_whole_layer(node)
        read = node.all_input_nodes  # nothing, if it was discarded
        if heavy and read and all(origin(i) != of_x for i in read):
            return False
        node = node.next
    late = facts.late(sister.needs, group[0].node)
    return group[0].node not in late and not any(has_a_place(n) or is_awaited(n) for n in late)


# --- the edit -------------------------------------------------------------------------------------


def _replace(facts: Graph, group: Sequence[_Sister], edit: Transaction) -> None:
    """Puts the op in front of the first of ``group``.

    Raises:
        RuntimeError: if a result is not what it replaces.
    """
    group = [_as_it_is(facts, sister) for sister in group]
    place = group[0].node
    hoist(facts, [node for sister in group for node in sister.needs], place)
    with facts.graph.inserting_before(place):
        weights, biases = zip(*(_factors(facts, sister) for sister in group), strict=True)
        arguments = (group[0].x, list(weights), list(biases))
        op = facts.graph.call_function(torch.ops.fusepass.linears.default, arguments)
        describe(facts, op, place, [contiguous_like(sister.node) for sister in group])
        items = []
        for index, sister in enumerate(group):
            item = item_of(facts, op, index, sister.node)
            if weighed_by_partitioner(facts):
                item = named(facts, item, sister.node)
            items.append(item)
    for sister, item in zip(group, items, strict=True):
        _hand_on(facts, sister, item, edit)


def _as_it_is(facts: Graph, sister: _Sister) -> _Sister:
    """``sister`` in the graph as it is: its x may be a result of a group before it."""
    if sister.anchor is None:
        return sister
    return replace(sister, anchor=read_anchor(facts, sister.node, "accurate"))


def _factors(facts: Graph, sister: _Sister) -> tuple[Node, Node | None]:
    anchor = sister.anchor
    if anchor is None:
        _, weight, bias = sister.node.args[:3]
        return weight, bias  # type: ignore[return-value]
    return weight_of(facts, anchor.kn), anchor.bias and vector_of(facts, anchor.bias)


def _hand_on(facts: Graph, sister: _Sister, item: Node, edit: Transaction) -> None:
    """Gives ``item`` to what used the product, which goes."""
    anchor, z = sister.anchor, sister.node
    if anchor is not None:
        z = anchor.z
        # Not earlier: the sizes that the views ask for may be computed there.
        with facts.graph.inserting_before(z):
            item = through(facts, item, anchor.reshapes)
    check_same(item, z)
    z.replace_all_uses_with(item)
    if anchor is None:  # the pass has added it
        facts.graph.erase_node(z)
    else:
        edit.discard(sorted({z, *anchor.views, sister.node, anchor.kn}, reverse=True))
