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

from ..match.epilogues import Match
from ..match.facts import Graph

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
    if found.exit.meta.get("recompute") is None and any(
        _computed_again(anchor.gemm) for anchor in found.gemms
    ):
        return f"{found.exit.name} is behind the checkpoint's end, which recomputes the GEMM"
    if len({_computed_again(anchor.gemm) for anchor in found.gemms}) > 1:
        return "checkpointing recomputes one of two products"
    return None


def result_is_saved(found: Match) -> bool:
    """Whether the backward reads the op's result, rather than compute it from the pre-activation.

    Saved as it would be without fusepass, it costs no memory more and no time. Where a checkpoint
    policy saves the GEMM alone, or memory is short by the user's own budget, the original nodes
    behind the pre-activation must stay for the backward to recompute.
    """
    if functorch_config.activation_memory_budget < 1:
        return False
    return _computed_again(found.anchor.gemm) or not _computed_again(found.exit)


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
            )
        )
        return types

    get_default_op_list.knows_fusepass = True  # type: ignore[attr-defined]
    partitioners.get_default_op_list = get_default_op_list
