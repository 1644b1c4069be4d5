"""What Inductor makes of the operators behind a product: whether its next kernels would compute an
epilogue as well, and what that leaves to be read and written."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch.fx import Node

from ..match.ends import End, sums_rows
from ..match.epilogues import Match
from ..match.facts import Graph, dtype_of, has_a_place, is_fusible, is_view, packet

aten = torch.ops.aten


def adds_a_matrix(facts: Graph, found: Match) -> bool:
    """Whether a site of the backward writes what code of Inductor's alone reads, beside a z that is
    written all the same, as in a norm's gradient: that code could read z, and more would be moved,
    and saved for it. Sums beside it do not make up for that."""
    anchor = found.anchor
    if anchor.z in facts.forward or not found.needs(anchor):
        return False
    return all(
        end.is_sum or (is_absorbed(facts, end.node, is_fusible) and not is_kept(facts, end.node))
        for end in found.ends
    )


def waits_for_an_operand(facts: Graph, found: Match) -> bool:
    """Whether a matrix would be written only for the site to read: Inductor would compute it in
    the kernels behind z that read it, as it does a norm's normalized input."""
    return any(
        operand.kind == "mat"
        and node not in found.by_heads  # which are small
        and _is_made_behind(facts, found, node)
        for operand, node in zip(found.epilogue.operands, found.operands, strict=True)
    )


def _is_made_behind(facts: Graph, found: Match, node: Node) -> bool:
    """Whether ``node``'s value is Inductor's, and all that reads it is Inductor's and needs z, or
    is of the forward of z's backward, which would not save it. Masks are saved."""
    made = node.all_input_nodes[0] if is_view(node) else node
    if not is_fusible(made) or dtype_of(node) is torch.bool:
        return False
    z = found.anchor.z

    def is_behind(user: Node) -> bool:
        if user in found.inside:
            return True
        if not (is_fusible(user) or (is_view(user) and all(map(is_behind, user.users)))):
            return False
        return facts.depends_on(user, z) or (user in facts.forward and z not in facts.forward)

    return all(map(is_behind, node.users))


def draws_a_mask(facts: Graph, found: Match) -> bool:
    """Whether it reads a mask of random numbers, as dropout's forward does: drawing them takes
    Inductor's kernel longer than all that it reads and writes besides, which is then free there,
    and a kernel that writes the mask would take as long. The backward finds it in memory."""
    return found.anchor.z in facts.forward and any(map(_is_drawn, found.operands))


def _is_drawn(node: Node) -> bool:
    made = node.all_input_nodes[0] if is_view(node) else node
    drawn = is_fusible(made) and any(map(has_a_place, made.all_input_nodes))
    return drawn and dtype_of(node) is torch.bool


def is_free(facts: Graph, end: End) -> bool:
    """Whether Inductor would compute ``end`` inside each kernel that reads it."""
    node = end.node
    return not end.is_sum and is_absorbed(facts, node) and not is_kept(facts, node)


def feeds_fusible(facts: Graph, node: Node) -> bool:
    """Whether some operator behind ``node``, views aside, is one that Inductor fuses."""
    return any(
        feeds_fusible(facts, user) if is_view(user) else _is_next(user)
        for user in facts.users_in_phase(node)
    )


def _is_next(user: Node) -> bool:
    """Whether the kernel that computes ``user`` could as well compute what it reads: one of sums
    over rows goes down the columns, and reads that of memory."""
    return is_fusible(user) and not sums_rows(user)


def is_absorbed(facts: Graph, node: Node, by: Callable[[Node], bool] = _is_next) -> bool:
    """Whether all that reads ``node``, views aside, is as ``by`` says, and nothing saves it."""
    beside = facts.users_in_phase(node)
    return 0 < len(beside) == len(node.users) and all(
        is_absorbed(facts, user, by) if is_view(user) else by(user) for user in beside
    )


def is_repeated(facts: Graph, node: Node) -> bool:
    """Whether all that reads ``node``, views aside, is copies of it expanded, as those of keys are
    for groups of queries: kernels of Inductor's, which could compute it as well."""
    users = facts.users_in_phase(node)
    expanded = [u for u in users if packet(u) is aten.expand]
    views = [u for u in users if is_view(u) and packet(u) is not aten.clone]
    copied = all(packet(u) is aten.clone for e in expanded for u in e.users)
    return 0 < len(users) == len(expanded) + len(views) and (
        copied and all(is_repeated(facts, view) for view in views)
    )


def is_kept(facts: Graph, node: Node) -> bool:
    """Whether ``node``'s value must be in memory anyway, for a user behind what is no kernel of
    Inductor's and depends on it, as a residual is: computing it there spares reading z, then."""
    users = facts.users_in_phase(node)
    if len(users) < 2:
        return len(users) == 1 and is_view(users[0]) and is_kept(facts, users[0])
    late = facts.late([i for i in max(users).all_input_nodes if i is not node], node)
    return any(not _is_inductors(n) and facts.depends_on(n, node) for n in late)


def _is_inductors(node: Node) -> bool:
    return is_fusible(node) or is_view(node) or node.target is operator.getitem
