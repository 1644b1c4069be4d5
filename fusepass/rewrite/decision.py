"""Decision: whether fusepass runs a GEMM, with the epilogue behind it or without one."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..ir import Epilogue, Output, Z
from ..kernels import fuses, fuses_gated, fuses_program, has_fused_gemm
from ..kernels.calls import Call, hint
from ..match.anchor import Anchor
from ..match.epilogues import Match
from ..match.facts import Graph, is_fusible, shape_of
from ..match.operands import group_of
from ..match.order import shows_order
from .behind import (
    adds_a_matrix,
    draws_a_mask,
    feeds_fusible,
    is_absorbed,
    is_free,
    is_kept,
    is_repeated,
    waits_for_an_operand,
)
from .claims import bare_claim
from .packing import is_packed
from .tables import is_read_by_heads

aten = torch.ops.aten

_ALIGNMENT = 16  # bytes: what the kernels' copies start at, and what lies between their rows

# How the reason begins where no epilogue stands against a product, only its speed.
ALONE = "a product alone"
# Why two products stay apart there; the tests' numbers do without.
_ON_THE_CPU: str | None = "on the CPU two products are torch's, and what joins them Inductor's"

# Inductor's sum over rows reads what the op has written there; the tests' numbers do without this.
_SUMS_ON_THE_CPU: str | None = "on the CPU sums over rows are Inductor's"

# There Inductor's loops over z are as good; the tests' numbers do without this.
_HEADS_ON_THE_CPU: str | None = "on the CPU RoPE (rotary embedding) is Inductor's"

_FREE = "Inductor fuses these stages with what follows, for free"


def worthwhile(
    *, cuda: bool, one_kernel: bool, tail_is_free: bool, saves_nothing: bool
) -> str | None:
    """Why a valid site is better left to Inductor, or None.

    Args:
        cuda: whether it runs on a GPU; on the CPU the op is lowered to Inductor's own code.
        one_kernel: whether GEMM and epilogue can be one kernel there.
        tail_is_free: whether Inductor would compute the epilogue inside a next kernel anyway.
        saves_nothing: whether each kernel that reads the result would, of a GEMM on tensor cores.
            Fusing then saves no kernel and no traffic, and its share of the GEMM's time is lost.
    """
    if cuda and (saves_nothing or (tail_is_free and not one_kernel)):
        return _FREE
    return None


def objection(facts: Graph, found: Match, numerics: str) -> str | None:
    """Why a valid site with an epilogue is better left to Inductor, or None."""
    cuda = found.anchor.z.meta["val"].device.type == "cuda"
    if numerics == "accurate" and any(is_packed(anchor.kn) for anchor in found.gemms):
        return "freezing packs its weight, for which oneDNN and MKL have a faster GEMM"
    if found.second is not None:
        return _gated_objection(found, cuda)
    if _SUMS_ON_THE_CPU is not None and not cuda and any(end.is_sum for end in found.ends):
        return _SUMS_ON_THE_CPU
    if _HEADS_ON_THE_CPU is not None and not cuda and found.epilogue.heads.columns:
        return _HEADS_ON_THE_CPU
    if adds_a_matrix(facts, found) or waits_for_an_operand(facts, found):
        return _FREE
    if cuda and is_narrow(found.anchor.z) and draws_a_mask(facts, found):
        return _FREE
    if cuda and not found.is_plain and not (_is_proven(found) and one_kernel(found, numerics)):
        return "no kernel computes the product and what reads tensors beside it as fast as two do"
    return worthwhile(
        cuda=cuda,
        one_kernel=cuda and one_kernel(found, numerics),
        tail_is_free=feeds_fusible(facts, found.exit),
        saves_nothing=cuda and is_narrow(found.anchor.z) and _saves_nothing(facts, found),
    )


def _saves_nothing(facts: Graph, found: Match) -> bool:
    """Whether a next kernel, of Inductor's, would compute the epilogue and not be slower by more
    than the GEMM is when that does.

    Instead of z and of each matrix it then reads the result, which it need not write either. Of
    several results one that must be in memory is enough.
    """
    if found.by_heads and is_repeated(facts, found.exit):
        return True
    if len(found.ends) > 1:
        return all(is_free(facts, end) for end in found.ends)
    spared = _spared(found)
    kept = not is_absorbed(facts, found.exit) or is_kept(facts, found.exit)
    if not spared:
        return not kept
    if not feeds_fusible(facts, found.exit):
        return False
    call, group = call_of(found.anchor, str(found.epilogue), "accurate"), _group(found)
    return not fuses_program(*call.sizes, call.epilogue, spared + kept, group)


def _spared(found: Match) -> float:
    """How many matrices of 16 bits a next kernel need not read behind ours; those of one head are
    small."""
    read = zip(found.epilogue.operands, found.operands, strict=True)
    mats = [n for i, n in read if i.kind == "mat" and n not in found.by_heads]
    return sum(node.meta["val"].element_size() / 2 for node in mats)


def one_kernel(found: Match, numerics: str) -> bool:
    """Whether one kernel will run the site; where sizes are dynamic, whether one can."""
    call = call_of(found.anchor, str(found.epilogue), numerics)
    if numerics == "bitwise" or not has_fused_gemm(call.device, call.dtype):
        return False
    if is_narrow(found.anchor.z) and not all(map(_factors_are_read, found.gemms)):
        return False
    if found.second is not None:
        return _gated(found)
    if not found.is_plain:
        read = not is_narrow(found.anchor.z) or _mats_are_read(found)
        question = (*call.sizes, _whole(found))
        return read and not call.guessed and fuses_program(*question, group=_group(found))
    sizes = (*shape_of(found.anchor.gemm), shape_of(found.anchor.x)[1])
    return fuses(*call.problem) if all(isinstance(size, int) for size in sizes) else True


def _is_proven(found: Match) -> bool:
    """Whether what sums the columns of 16 bits has run: beside a matrix."""
    sums = any(end.is_sum for end in found.ends) and is_narrow(found.anchor.z)
    return not sums or any(i.kind == "mat" for i in found.epilogue.operands)


def _whole(found: Match) -> str:
    """The program of a site, of several results with z where that is written, too."""
    more = [Output(Z)] * (len(found.ends) > 1 and found.needs(found.anchor))
    return str(Epilogue(found.epilogue.nodes, (*found.epilogue.outputs, *more)))


def _group(found: Match) -> int:
    """Rows of the smallest group that has numbers a column of its own beside z, or 0."""
    shape = found.shape
    if shape is None:
        return 0
    read = zip(found.epilogue.operands, found.operands, strict=True)
    groups = [group_of(node, shape) for operand, node in read if operand.kind == "col"]
    return min(filter(None, groups), default=0)


def _gated_objection(found: Match, cuda: bool) -> str | None:
    """As ``objection``. One kernel always saves traffic: Inductor would write and read both GEMMs,
    it writes those that something else reads."""
    if found.operands and any(i.kind != "$" for i in found.epilogue.operands):
        return "two products that meet with a third tensor"
    if cuda:
        return None if _gated(found) else "no kernel here multiplies by two weights"
    return _ON_THE_CPU


def _gated(found: Match) -> bool:
    """``one_kernel`` of two weights; also where z and z1 are stored, as far as is known here."""
    call = call_of(found.anchor, str(found.epilogue), "accurate")
    sizes = (*shape_of(found.anchor.gemm), shape_of(found.anchor.x)[1])
    if not all(isinstance(size, int) for size in sizes):
        short = call.dtype in (torch.float16, torch.bfloat16)
        return short and has_fused_gemm(call.device, call.dtype)
    n = call.n if found.anchor.columns is None else call.n // 2
    problem = (call.device, call.dtype, call.m, n, call.k, call.w_is_kn, call.x_is_km)
    return fuses_gated(*problem, stores=3)


def _mats_are_read(found: Match) -> bool:
    """Whether the 16-bit kernel's copies read every matrix beside z: rows at one distance of a
    multiple of 16 bytes. The op itself would take two kernels, which Inductor does not lose to.
    What Inductor computes for itself and the op lies as that asks (op/lowering.py)."""
    for operand, node in zip(found.epilogue.operands, found.operands, strict=True):
        value = node.meta["val"]
        if operand.kind != "mat":
            continue
        if node in found.by_heads:
            if not is_read_by_heads(found, node, _ALIGNMENT):
                return False
            continue
        if shape_of(node) != found.shape:
            return False  # broadcast over some of z's dimensions
        if is_fusible(node) and not shows_order(node):
            continue
        spaced = all(
            hint(value.stride(d)) == hint(value.stride(d + 1)) * hint(value.shape[d + 1])
            for d in range(value.dim() - 2)
        )
        if not spaced or value.stride(-1) != 1 or not _is_matrix(value, _ALIGNMENT):
            return False
    return True


def call_of(anchor: Anchor, epilogue: str, numerics: str) -> Call:
    x, kn = (node.meta["val"] for node in (anchor.x, anchor.kn))
    weight = (kn.shape[::-1], kn.stride()[::-1])
    what = (epilogue, False, numerics, anchor.bias is not None)
    return Call.of(anchor.gemm.name, x, *weight, *what)


# --- without an epilogue -------------------------------------------------------------------------


def has_kernel(anchor: Anchor) -> bool:
    """Whether kernels of ours run on the anchor's device and take its dtype."""
    value = anchor.gemm.meta["val"]
    return has_fused_gemm(value.device, value.dtype)


def bare_objection(anchor: Anchor, numerics: str) -> str | None:
    """Why a GEMM alone is better run by torch, or None.

    A kernel of ours must be known to be faster: the plan is asked about the sizes that the graph
    was traced with, and about others again when it runs.
    """
    against = kernel_objection(anchor, numerics)
    if against is not None:
        return against
    call = call_of(anchor, "", numerics)
    if not fuses(*call.problem):
        return f"{ALONE}, and torch's GEMM is as fast at {call.m}x{call.n}x{call.k}"
    return None


def kernel_objection(anchor: Anchor, numerics: str) -> str | None:
    """Why a GEMM without an epilogue is torch's, however fast a kernel of ours is, or None."""
    if anchor.blocked is not None:
        return anchor.blocked
    if numerics == "bitwise":
        return "bitwise: eager's own GEMM is called"
    call = call_of(anchor, "", numerics)
    if not has_kernel(anchor):
        where = "the CPU" if call.device.type == "cpu" else "this device"
        return f"{ALONE}, which torch's GEMM computes on {where}"
    narrow = is_narrow(anchor.z)
    claimed = bare_claim(anchor.gemm) if narrow else None
    if claimed is not None:
        return claimed
    if call.guessed:
        return f"{ALONE}, of a size that depends on data"
    alignment = _ALIGNMENT if narrow else 1  # float32's operands are copied, split
    if not _factors_are_read(anchor, alignment):
        return f"{ALONE}, of matrices whose rows do not start at multiples of 16 bytes"
    return None


def is_narrow(z: Node) -> bool:
    """Whether torch's GEMM runs on tensor cores, so that little that is lost counts."""
    from ..kernels.plan.problem import FLOAT32, plan_code

    return plan_code(z.meta["val"].dtype) != FLOAT32


def _factors_are_read(anchor: Anchor, alignment: int = _ALIGNMENT) -> bool:
    """Whether x and the weight lie as the copies of a kernel read them."""
    return all(_is_matrix(node.meta["val"], alignment) for node in (anchor.x, anchor.kn))


def _is_matrix(value: Any, alignment: int) -> bool:
    """Whether it is stored row after row, or column after column, at such multiples of bytes."""
    step = max(1, alignment // value.element_size())
    inner, outer = sorted(map(hint, value.stride()[-2:]))
    return inner == 1 and outer % step == 0 and hint(value.storage_offset()) % step == 0
