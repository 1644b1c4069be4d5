"""Jumps: operators whose result a rounding may change by more than itself, as a comparison's.

An epilogue computes them of what is not rounded, what it leaves computes them of what is. Each may
fall to its own side of a bound: ``torch.lerp(a, b, sigmoid(z))`` is ``where(w >= 0.5, b, a)`` and a
term of ``w`` that fits to one of both.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch.fx import Node

from .facts import dtype_of, is_identity, packet
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
    own, facts = _with_aside(region, inside), region.facts
    nodes = sorted(own)
    for jump in filter(_is_jump, nodes):
        told = _told_by(jump, nodes)
        if told.isdisjoint(ends) or _is_of_memory(region, jump, own):
            continue
        left = [u for n in told.difference(ends) for u in facts.users_in_phase(n)]
        left += [
            user
            for node in jump.all_input_nodes
            if node in region.members or node in own
            for user in facts.users_in_phase(node)
            if _is_jump(user)
        ]
        if not own.issuperset(left):
            return jump
    return None


def _with_aside(region: Region, inside: Sequence[Node]) -> set[Node]:
    """``inside`` and what it computes of operands alone."""
    own, pending = set(inside), list(inside)
    while pending:
        read = region.aside.intersection(pending.pop().all_input_nodes).difference(own)
        own |= read
        pending += read
    return own


def _told_by(node: Node, nodes: Sequence[Node]) -> set[Node]:
    """Those of ``nodes`` that depend on ``node``, and itself."""
    told = {node}
    for later in nodes:
        if not told.isdisjoint(later.all_input_nodes):
            told.add(later)
    return told


def _is_of_memory(region: Region, jump: Node, own: Collection[Node]) -> bool:
    """Whether ``jump`` is computed of nothing but tensors as they are in memory."""
    pending = [jump]
    while pending:
        node = pending.pop()
        if node in region.roots or not (node not in own or is_identity(node) or _is_jump(node)):
            return False
        pending += node.all_input_nodes if node in own else ()
    return True


def _is_jump(node: Node) -> bool:
    return dtype_of(node) is torch.bool or packet(node) in _STEPS
