"""float32 problems for the kernel, and the op on them; what is not theirs is NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)

F = torch.nn.functional
CHAIN = "mul(0.5) clamp(-2.0, 2.0) gelu"
NAN = float("nan")
MIB = 2**20
SHAPES = [(128, 128, 256), (1, 128, 512), (100, 96, 300), (333, 514, 1000), (257, 2048, 2052)]
ODD = [(131, 131, 517), (1, 65, 777), (7, 1, 33), (65, 66, 3)]  # rows at any address


PROBLEMS = [*SHAPES, (513, 66, 9000), *ODD]


def stored(rows: int, k: int, is_km: bool) -> Tensor:
    """Random [rows, k] within a matrix of NaN, stored by rows or by K.

    Where the size is a multiple of 4, rows are aligned.
    """
    lines, length = (k, rows) if is_km else (rows, k)
    first = 4 if length % 4 == 0 else 1
    whole = torch.full((lines + 1, first + length + 4), NAN, device="cuda")
    part = whole[:lines, first : first + length].copy_(torch.randn(lines, length, device="cuda"))
    return part.t() if is_km else part


def with_few(
    rows: int, k: int, few: list[int], km: bool, last: float = 2.0**-33
) -> tuple[Tensor, Tensor]:
    """A matrix whose rows ``few`` have five elements, one times ``last``; and which rows."""
    matrix, mask = stored(rows, k, km), torch.zeros(rows, dtype=torch.bool, device="cuda")
    for row in few:
        kept = torch.randperm(k, device="cuda")[:5]
        values = matrix[row, kept] * torch.tensor([1, 1, 1, 1, last], device="cuda")
        matrix[row] = 0
        matrix[row, kept] = values
        mask[row] = True
    return matrix, mask


def poison(m: int, n: int) -> None:
    """What the allocator hands out next for an output or for sums is full of NaN."""
    full = [torch.full((m, n), NAN, device="cuda") for _ in range(4)]
    del full


def peak(call: Callable[[], Any], results: bool = True) -> float:
    """MiB that a call takes beyond what is there before it, with or without its results."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = call()
    torch.cuda.synchronize()
    own = 0 if results else sum(t.nbytes for t in (out if isinstance(out, list) else [out]))
    return (torch.cuda.max_memory_allocated() - before - own) / MIB


def both(x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
    poison(*x.shape[:1], *w.shape[:1])
    out, z = torch.ops.fusepass.linear_with_preact(x, w, b, CHAIN, [])
    return out, z


def chain(z: Tensor) -> Tensor:
    return F.gelu(F.hardtanh(z * 0.5, -2.0, 2.0))
