"""A launch of the kernel of widened batches, as launch_kinds.py has those of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from epilogues import error
from forced_gemm import poison
from launch_kinds import BF16, F32

from fusepass.kernels import widened


@dataclass(frozen=True)
class Widened:
    """A batch of products of float32 matrices that were bfloat16's."""

    not_under: ClassVar[tuple[str, ...]] = ()
    m: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"widened: {self.m}x{self.k}->{self.n}"

    def build(self) -> None:
        widened.cubin("90a")

    def run(self) -> float:
        x, w = (torch.randn(2, 3, r, self.k, device="cuda").to(BF16) for r in (self.m, self.n))
        poison(6 * self.m, self.n, F32)
        out = torch.ops.fusepass.bmm_widened(x, w, 0.125)
        torch.cuda.synchronize()
        x, w = x.cpu().double(), w.cpu().double()
        return error(out.cpu(), x @ w.mT * 0.125) / 1e-6
