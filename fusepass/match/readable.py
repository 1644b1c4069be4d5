"""Readable: what of a region is operations of the table, and where an epilogue may end."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.fx import Node

from ..ir import Input, Ref
from .facts import dtype_name, dtype_of, is_fusible, is_identity, is_view
from .followers import NoMatch, composite, layer_reason
from .heads import parts_of
from .importing import Importer
from .program import represents
from .region import Region


class Readable:
    """The part of a region that is operations of the table, from z on.

    Attributes:
        region: the whole.
        importer: has read it.
        values: its nodes' values in the program, views and casts among them.
        first: the first node that is none, with the reason; None if all are read.
    """

    def __init__(self, region: Region) -> None:
        self.region, self.first = region, None
        members = [n for n in region.members if n not in region.roots]
        program, places = region.written(members)
        self.importer = Importer(program)
        self.values: dict[Node, Ref | Input] = {}
        for node in region.members:
            place = places[node]
            value = place if isinstance(place, Input) else self.importer.values[place.index]
            if node in region.roots:
                assert not isinstance(value, str)
                self.values[node] = value
                continue
            reason = value if isinstance(value, str) else layer_reason(region, node)
            unread = any(i not in self.values for i in region.members[node].inputs)
            if reason is None and not unread and not isinstance(value, str):
                self.values[node] = value
            elif self.first is None and reason and not is_view(node):
                self.first = NoMatch(composite([node]) or reason, node)

    def exits(self) -> Iterator[Node]:
        """Nodes whose values may be a site's result, those with the most operators behind first.

        What is read is used elsewhere at one of them, or passes one of them on every way.
        """
        passed: set[Node] = set()
        known = {*self.values, *parts_of(self.region)}
        for node in self.values:
            users = self.region.facts.users_in_phase(node)
            if any(user not in known for user in users):
                passed.update(self.region.chain(self.region.behind(node)))
        found = [n for n in passed if self.ends_in(n) and self.region.joins(n)]
        return iter(sorted(sorted(found, reverse=True), key=self._size, reverse=True))

    def ends_in(self, node: Node) -> bool:
        """Whether ``node`` computes, or casts what was computed back, to a dtype of a result's."""
        if node in self.region.roots or is_view(node) or not self._is_stored(node):
            return False
        if self.region.members[node].part is not None:  # of other sizes than z
            return False
        if not is_identity(node):
            return True
        computed = any(not is_identity(n) for n in self.region.behind(node))
        changed = dtype_of(node.args[0]) is not dtype_of(node)  # type: ignore[arg-type]
        return computed and changed and not self._is_widened_to_be_read(node)

    def _is_widened_to_be_read(self, node: Node) -> bool:
        """Whether ``node`` is wider than z, and Inductor's code alone reads it: that reads what is
        widened, half as many bytes, as well."""
        facts = self.region.facts
        beside = facts.users_in_phase(node)
        wider = dtype_of(node) is not dtype_of(self.region.z)
        return wider and 0 < len(beside) == len(node.users) and all(map(is_fusible, beside))

    def _is_stored(self, node: Node) -> bool:
        """Whether a result may have the dtype of ``node``: z's, or that of a wider operand."""
        own, dtype = dtype_of(self.region.z), dtype_of(node)
        if own is None or dtype is None or dtype is own:
            return dtype is own
        wide = {dtype_of(n) for i, n in self.region.operands.items() if i.kind != "$"}
        return dtype in wide and dtype != torch.bool and represents(dtype, own)

    def _size(self, node: Node) -> int:
        return sum(not is_identity(n) for n in self.region.behind(node))

    def unfinished(self, reasons: list[NoMatch]) -> list[NoMatch]:
        """``reasons``, or that what was read never comes back to z's dtype."""
        roots = self.region.roots
        computing = [n for n in self.values if n not in roots and not is_identity(n)]
        if reasons or not computing:
            return reasons
        wide, ours = (dtype_name(dtype_of(n)) for n in (computing[-1], self.region.z))
        reason = f"the result stays in {wide}, the Linear computes in {ours}"
        return [NoMatch(reason, computing[-1])]
