"""What activation checkpointing and the memory budget ask of a rewrite.

The partitioner reads ``meta["recompute"]`` of each node when it decides what the forward saves.
"""

from __future__ import annotations

import functools

import torch
import torch._functorch.config as functorch_config
from torch._functorch import partitioners
from torch.fx import Node
from torch.utils.checkpoint import CheckpointPolicy

from ..match.ends import End
from ..match.epilogues import Match
from ..match.facts import Graph, is_fusible, is_view

_AGAIN = (CheckpointPolicy.MUST_RECOMPUTE, CheckpointPolicy.PREFER_RECOMPUTE)


def _computed_again(node: Node) -> bool:
    return node.meta.get("recompute") in _AGAIN


def refuse(found: Match) -> str | None:
    """Why fusing would change what is recomputed, or None.

    A value behind the GEMM that must be saved, or that lies behind the checkpoint's end, as the sum
    with a residual does, spares the backward the GEMM. The fused op has one
    mark for both, and with the GEMM's the backward would run it again.
    """
    kept = [n for n in found.inside if n.meta.get("recompute") == CheckpointPolicy.MUST_SAVE]
    if kept and any(_computed_again(anchor.gemm) for anchor in found.gemms):
        return f"checkpointing saves {kept[0].name}, which is inside, and recomputes the GEMM"
    behind = [end.node for end in found.ends if end.node.meta.get("recompute") is None]
    if behind and any(_computed_again(anchor.gemm) for anchor in found.gemms):
        return f"{behind[0].name} is behind the checkpoint's end, which recomputes the GEMM"
    if len({_computed_again(anchor.gemm) for anchor in found.gemms}) > 1:
        return "checkpointing recomputes one of two products"
    return None


def result_users(facts: Graph, found: Match, end: End) -> list[Node]:
    """Those users of ``end`` that get the op's result where z is there, too.

    The rest, of the backward, computes it from z, as without fusepass: a result that is read by
    nothing but Inductor's code there is not worth its memory beside z's.
    """
    beside = facts.users_in_phase(end.node)
    if not _is_saved(found, end):
        return beside
    if end.is_sum or end.node is found.exit:
        return list(end.node.users)
    return [u for u in end.node.users if u in beside or _is_in_memory(u)]


def _is_in_memory(user: Node) -> bool:
    """Whether what ``user`` reads must be in memory for it, or for what reads a view of it."""
    if is_view(user):
        return any(map(_is_in_memory, user.users))
    return not is_fusible(user)


def _is_saved(found: Match, end: End) -> bool:
    """Whether the backward reads the op's result, rather than compute it from the pre-activation.

    Saved as it would be without fusepass, it costs no memory more and no time. Where a checkpoint
    policy saves the GEMM alone, or memory is short by the user's own budget, the original nodes
    behind the pre-activation must stay for the backward to recompute.
    """
    if functorch_config.activation_memory_budget < 1:
        return False
    return _computed_again(found.anchor.gemm) or not _computed_again(end.node)


def weighed_by_partitioner(facts: Graph) -> bool:
    """Whether the partitioner must be told that the pre-activation is stored, as a GEMM's is.

    An item of a tuple counts as a value that need not be: then saving what is computed from it
    looks cheaper, and the forward computes and stores that as well. ``aten.detach``, a name that
    costs nothing, counts as stored. Under a memory budget each value is weighed by itself, and one
    with two names would be weighed twice.
    """
    return facts.has_backward and functorch_config.activation_memory_budget >= 1


def count_as_products() -> None:
    """Tells the partitioner, once a process, that our ops cost what ``aten.mm`` costs.

    It knows that of torch's own operators only, and under a memory budget it would compute ours
    again as if that were as cheap as an addition.
    """
    original = partitioners.get_default_op_list
    if hasattr(original, "knows_fusepass"):
        return

    @functools.wraps(original)
    def get_default_op_list() -> partitioners.OpTypes:
        types = original()
        types.compute_intensive_ops.update(
            (
                torch.ops.fusepass.linear,
                torch.ops.fusepass.linear_with_preact,
                torch.ops.fusepass.gemm,
                torch.ops.fusepass.linears,
                torch.ops.fusepass.bmm_widened,
            )
        )
        return types

    get_default_op_list.knows_fusepass = True  # type: ignore[attr-defined]
    partitioners.get_default_op_list = get_default_op_list
