"""What looks like a stage behind a GEMM and is none, and why."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from .cpu import compute_dtype
from .facts import (
    Graph,
    dtype_name,
    dtype_of,
    is_cast,
    is_identity,
    is_pointwise,
    is_view,
    numel_is_one,
    packet,
)
from .program import represents
from .region import Region

aten = torch.ops.aten

_PARTS = (aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.unbind)
_BINARY = {"mul", "div", "clamp", "clamp_min", "clamp_max", "maximum", "minimum"}


@dataclass(frozen=True)
class NoMatch:
    """Why a place that looked like a site is none, and the node that says so."""

    reason: str
    node: Node


def composite(nodes: Sequence[Node]) -> str | None:
    """The reason when ``nodes`` are one operator of the user's program, taken apart."""
    computing = [n for n in nodes if not is_identity(n)]
    names, first = {_name_of(n) for n in computing}, _target(computing[0])
    could_be_a_stage = len(computing) == 1 and first in _BINARY
    if could_be_a_stage or len(names) != 1 or names == {first}:
        return None
    return f"`{names.pop()}` is not a stage fusepass knows"


def followers(region: Region) -> Iterator[NoMatch]:
    """The operators behind z that look like a stage, each with what is wrong if it is none."""
    pending = [(region.z, "", False)]
    while pending:
        node, lossy, part = pending.pop()
        for user in region.facts.forward_users(node):
            if is_view(user) or is_cast(user):
                pending.append((user, lossy or _lossy(region, user), part))
            elif packet(user) in _PARTS or user.target is operator.getitem:
                pending.append((user, lossy, True))
            elif user in region.members:
                yield NoMatch(f"`{_name_of(user)}` is not a stage fusepass knows", user)
            elif is_pointwise(user):
                reason = _outside(region, node, user, part)
                if reason is not None:
                    yield NoMatch(lossy or reason, user)


def whole_layers(facts: Graph) -> Iterator[NoMatch]:
    """The layers that torch runs as one operator in inference; a Linear's stages are inside."""
    for node in facts.graph.find_nodes(
        op="call_function", target=aten._transformer_encoder_layer_fwd.default
    ):
        reason = "torch runs this whole layer as one operator"
        switch = "torch.backends.mha.set_fastpath_enabled(False)"
        yield NoMatch(f"{reason}; with {switch} its Linears can fuse", node)


def _lossy(region: Region, cast: Node) -> str:
    ours, theirs = dtype_of(region.z), dtype_of(cast)
    if ours is None or theirs is None:
        return ""
    name = dtype_name(theirs)
    if not represents(theirs, ours):
        return f"the cast to {name} right behind the Linear loses bits; fusing would keep them"
    compute = compute_dtype(ours)
    if not represents(compute, theirs):
        return (
            f"the program goes on in {name}, where the fused op computes in {dtype_name(compute)}"
        )
    return ""


def _outside(region: Region, z: Node, node: Node, part: bool) -> str | None:
    """Why ``node``, a pointwise user of z, is not in its region; None if it is nothing like one.

    Args:
        part: whether ``z`` is only a part of the pre-activation.
    """
    others = [i for i in node.all_input_nodes if i is not z and i not in region.members]
    if all(region.facts.constant(i) is not None or region.is_operand(i) for i in others):
        if part:  # attention scales a third of a Linear's result; that is no activation
            whole = f"`{_name_of(node)}` takes a part of the Linear's result, a fused op all of it"
            return None if _name_of(node) in ("mul", "div") else whole
        return f"`{_name_of(node)}` changes the shape or the dtype of its input"
    if part or {_name_of(node), _target(node)}.isdisjoint(_BINARY):
        return None
    if all(numel_is_one(i) for i in others):
        return f"`{_name_of(node)}` takes a scalar that is no float or comes from the Linear itself"
    return f"`{_name_of(node)}` takes another tensor, which differs by element"


def _target(node: Node) -> str:
    return str(node.target._schema.name).split("::")[-1]  # type: ignore[union-attr]


def _name_of(node: Node) -> str:
    """The operator that the user's program ran: ``silu`` for the ``neg`` it was taken apart to."""
    original = node.meta.get("original_aten")
    schema = getattr(original, "_schema", None) or node.target._schema  # type: ignore[union-attr]
    return str(schema.name).split("::")[-1]
