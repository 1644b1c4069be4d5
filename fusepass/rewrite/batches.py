"""Batches of matrices: those widened from 16 bits as one op, where that is faster."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.fx import Node

from ..kernels import has_fused_gemm
from ..kernels.calls import hint
from ..match.facts import Graph
from ..match.followers import NoMatch
from ..match.gemms import has_plain_attention, is_attention
from ..match.widened import Operand, Widened, read_widened
from .added import check_same, describe, reshaped_to, size_of
from .transaction import Transaction

_LEAST_K, _MOST_K = 64, 256
_UNIT = 8  # elements of 16 bytes: what the kernel's copies start at, and what lies between rows
_LEAST_SIDE = 64
_LEAST_RESULT = 1 << 20  # elements: below, a launch is most of the time


def decide(facts: Graph, told: NoMatch, numerics: str) -> Widened | NoMatch:
    """The product of widened batches that ``told.node`` is, if one kernel is faster.

    Args:
        told: why it is left otherwise.
    """
    value = told.node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not has_fused_gemm(value.device, value.dtype):
        return told
    found = read_widened(facts, told.node)
    if found is None:
        return told
    reason = _objection(facts, found, numerics)
    return found if reason is None else NoMatch(reason, told.node)


def _objection(facts: Graph, found: Widened, numerics: str) -> str | None:
    """Why a product of widened batches is better run by torch, or None."""
    from ..kernels.plan.problem import FLOAT32, plan_code

    if numerics == "bitwise":
        return "bitwise: eager's own GEMM is called"
    if found.x.value.dtype != torch.bfloat16:
        return "a product of a batch widened from float16, whose smallest numbers lose digits"
    if plan_code(torch.float32) != FLOAT32:
        return "a product of a batch of matrices, which torch computes in TF32 as it is allowed to"
    if is_attention(facts, found.gemm) and has_plain_attention(facts):
        return "Inductor makes one operator of an attention that is written like this one"
    if not 0 < abs(found.scale) <= 1:  # a larger one may bring back what float32 loses without it
        return f"a product of a widened batch, multiplied by {found.scale:g}"
    if not (_is_read(found.x) and _is_read(found.w)):
        return (
            "a product of a widened batch, whose rows are longer than 256 elements or do not "
            "start at multiples of 16 bytes"
        )
    sizes = (*found.gemm.meta["val"].shape, found.x.value.shape[-1])
    if not all(isinstance(s, int) or s.node.has_hint() for s in sizes):
        return "a product of a widened batch, of a size that depends on data"
    batch, m, n, k = map(hint, sizes)
    if k < _LEAST_K and math.frexp(found.scale)[0] in (0.5, -0.5):
        return f"a product of a widened batch, whose sums of {k} eager hardly rounds"
    if min(m, n) < _LEAST_SIDE or batch * m * n < _LEAST_RESULT:
        return f"a product of a widened batch, and torch's is as fast at {batch}x{m}x{n}"
    return None


def _is_read(operand: Operand) -> bool:
    """Whether the kernel reads it where it lies."""
    value = operand.value
    *outer, inner = map(hint, value.stride())
    k = hint(value.shape[-1])
    even = all(s % _UNIT == 0 for s in (*outer, hint(value.storage_offset()), k))
    return inner == 1 and even and 0 < k <= _MOST_K


def replace(facts: Graph, found: Widened, edit: Transaction) -> None:
    """Puts the op in a product's place.

    Raises:
        RuntimeError: if the result is not what it replaces.
    """
    gemm = found.gemm
    with facts.graph.inserting_before(gemm):
        x, w = (_view(facts, operand, gemm) for operand in (found.x, found.w))
        out = facts.graph.call_function(torch.ops.fusepass.bmm_widened.default, (x, w, found.scale))
        shape = (*found.x.value.shape[:-1], found.w.value.shape[-2])
        describe(facts, out, gemm, x.meta["val"].new_empty(shape, dtype=torch.float32))
        if len(shape) != gemm.meta["val"].dim():
            sides = (s if isinstance(s, int) else size_of(facts, out, d) for d, s in _sides(shape))
            out = reshaped_to(facts, out, [-1, *sides], gemm.meta["val"].shape)
    check_same(out, gemm)
    gemm.replace_all_uses_with(out)
    edit.discard(sorted((gemm, *found.nodes), reverse=True))
    for node in reversed(found.nodes):  # what widens them for the backward alone is of that
        facts.forget(node)


def _sides(shape: Sequence[Any]) -> Iterable[tuple[int, Any]]:
    """M and N, each with the dimension that it is of."""
    return [*enumerate(shape)][-2:]


def _view(facts: Graph, operand: Operand, gemm: Node) -> Node:
    node = operand.source
    for step in operand.steps:
        source, value = node, node.meta["val"]
        node = facts.graph.call_function(step.target, (source, *step.args))
        describe(facts, node, gemm, step.of(value))
    return node
