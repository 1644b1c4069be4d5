"""Jumps: operators whose result a rounding may change by more than itself, as a comparison's.

An epilogue computes them of what is not rounded, what it leaves computes them of what is. Each may
fall to its own side of a bound: ``torch.lerp(a, b, sigmoid(z))`` is ``where(w >= 0.5, b, a)`` and a
term of ``w`` that fits to one of both.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch.fx import Node

from .facts import dtype_of, packet
from .region import Region

aten = torch.ops.aten

_STEPS = (aten.round, aten.floor, aten.ceil, aten.trunc, aten.sign)

TORN = "is needed behind the epilogue, too, where it is computed of what is rounded: it may differ"


def torn(region: Region, inside: Sequence[Node], ends: Collection[Node]) -> Node | None:
    """The first jump that results of a site depend on, and what the site leaves does, too.

    Args:
        region: the site's.
        inside: the site's nodes behind z, in order.
        ends: those whose users take its results.
    """
    own, facts = set(inside), region.facts
    for jump in filter(_is_jump, inside):
        told = _told_by(jump, inside)
        if told.isdisjoint(ends):
            continue
        left = [u for n in told.difference(ends) for u in facts.users_in_phase(n)]
        left += [
            user
            for node in jump.all_input_nodes
            if node in region.members
            for user in facts.users_in_phase(node)
            if _is_jump(user)
        ]
        if not own.issuperset(left):
            return jump
    return None


def _told_by(node: Node, inside: Sequence[Node]) -> set[Node]:
    """Those of ``inside`` that depend on ``node``, and itself."""
    told = {node}
    for later in inside:
        if not told.isdisjoint(later.all_input_nodes):
            told.add(later)
    return told


def _is_jump(node: Node) -> bool:
    return dtype_of(node) is torch.bool or packet(node) in _STEPS
