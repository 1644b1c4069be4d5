"""Few rows on a GPU: the op over the bare F.linear, bound by reading the weight once.

    python benchmarks/few_rows.py --out results.json

Inputs and weights rotate through several times the L2 cache; calls are captured in CUDA graphs,
whose replays are interleaved; medians of device events (benchmarks/linear.py's protocol). The bare
product of a gated pair is one F.linear over both weights, as one matrix. "behind": each call has a
small kernel of torch's ahead of it, which writes its x and lets nothing start early, as in a model;
its time is in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from beside_bare import sweep, timed
from linear_peers import check
from torch import Tensor
from torch.nn import functional as F

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)

CHAIN = "mul(0.5) clamp(-2.0, 2.0) gelu"
GATED = "silu mul(z1)"
RESIDUAL = "add(mat0)"
_BANDWIDTH = 4.3e12  # of a copy on an H200, read and written
_SETS_BYTES = 250e6
_REPLAY_SECONDS = 1.5e-3
_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-5}


@dataclass(frozen=True)
class Case:
    """A problem; ``w_is_kn``: w is stored [K, N]; ``behind``: another kernel that writes its x."""

    m: int
    k: int
    n: int
    epilogue: str = CHAIN
    dtype: torch.dtype = torch.bfloat16
    w_is_kn: bool = False
    behind: bool = False

    def __str__(self) -> str:
        columns = f"2x{self.n}" if self.epilogue == GATED else str(self.n)
        dtype = str(self.dtype).removeprefix("torch.")
        shape = f"{self.m}x{self.k}->{columns}{' [K, N]' * self.w_is_kn}"
        return f"{'behind ' * self.behind}{shape} {dtype} {self.epilogue or 'bare'}"

    @property
    def weights(self) -> int:
        return 2 if self.epilogue == GATED else 1

    @property
    def bytes(self) -> int:
        return self.weights * self.n * self.k * self.dtype.itemsize


CASES = (
    *(Case(m, 4096, 16384) for m in (1, 2, 4, 8, 16, 32, 64)),
    Case(8, 8192, 8192),
    Case(32, 5120, 20480),
    Case(1, 2048, 8192, GATED),
    Case(8, 2048, 8192, GATED),
    Case(1, 4096, 4096, RESIDUAL),
    Case(16, 4096, 4096, RESIDUAL),
    *(Case(m, 4096, 4096, "") for m in (1, 4, 8, 16, 32, 64)),
    *(Case(m, 4096, 16384, "") for m in (1, 4, 16)),
    *(Case(m, 2048, n, "") for m in (1, 16) for n in (512, 2048, 8192)),
    Case(8, 2048, 2048, ""),
    # Of decoding steps of batch 1 and 16, beside these: Llama-3.2-1B's and GPT-2 medium's.
    *(Case(m, 8192, 2048, "") for m in (1, 16)),
    *(Case(m, 2048, 128256, "") for m in (1, 16)),
    *(Case(m, 1024, 50257, "") for m in (1, 16)),
    Case(16, 2048, 8192, GATED),
    # The layers of these models.
    *(
        Case(m, k, n, epilogue, w_is_kn=True, behind=True)
        for m in (1, 16)
        for k, n, epilogue in (
            (1024, 3072, ""),
            (1024, 1024, ""),
            (1024, 4096, CHAIN),
            (4096, 1024, ""),
        )
    ),
    *(
        Case(m, k, n, epilogue, behind=True)
        for m in (1, 16)
        for k, n, epilogue in (
            (2048, 2048, ""),
            (2048, 512, ""),
            (2048, 8192, GATED),
            (8192, 2048, ""),
        )
    ),
    *(Case(m, 4096, 16384, CHAIN, torch.float32) for m in (1, 2, 4, 8, 16)),
    Case(1, 4096, 4096, "", torch.float32),
    # The longest K in one chain a lane, and K in chains of 64 (plan/few.py).
    Case(1, 8192, 8192, CHAIN, torch.float32),
    *(Case(m, 16384, 4096, CHAIN, torch.float32) for m in (1, 2, 4)),
    Case(8, 8192, 8192, CHAIN, torch.float32),
)


class Sets:
    """As many inputs of a case as do not fit into the cache together."""

    def __init__(self, case: Case) -> None:
        self.case, m, k, n = case, case.m, case.k, case.n
        count = max(2, min(64, math.ceil(_SETS_BYTES / case.bytes)))
        more = {"device": "cuda", "dtype": case.dtype}
        self.inputs = []
        self.written = torch.empty(m, k, **more)
        for _ in range(count):
            w = torch.randn(case.weights * n, k, **more).mul_(k**-0.5)
            w = w.t().contiguous().t() if case.w_is_kn else w
            b = torch.randn(case.weights * n, **more)
            self.inputs.append((torch.randn(m, k, **more), w, b, torch.randn(m, n, **more)))

    def _ahead(self, x: Tensor) -> Tensor:
        return torch.mul(x, 1.0, out=self.written) if self.case.behind else x

    def bare(self, x: Tensor, w: Tensor, b: Tensor, _: Tensor) -> Tensor:
        return F.linear(self._ahead(x), w, b)

    def eager(self, x: Tensor, w: Tensor, b: Tensor, mat: Tensor) -> Tensor:
        z = F.linear(x, w, b)
        if self.case.epilogue == GATED:
            gate, up = z.chunk(2, dim=-1)
            return F.silu(gate) * up
        if self.case.epilogue == RESIDUAL:
            return z + mat
        return F.gelu((z * 0.5).clamp(-2.0, 2.0)) if self.case.epilogue else z

    def fused(self, x: Tensor, w: Tensor, b: Tensor, mat: Tensor) -> Tensor:
        case, x = self.case, self._ahead(x)
        if case.epilogue in (CHAIN, ""):
            return torch.ops.fusepass.linear(x, w, b, case.epilogue, [])
        operands = [mat] if case.epilogue == RESIDUAL else []
        pairs = list(w.chunk(case.weights)), list(b.chunk(case.weights))
        return torch.ops.fusepass.gemm(x, *pairs, case.epilogue, operands)[0]


def measure(case: Case, seconds: float, stream: Any) -> dict[str, Any]:
    """The times of a case, microseconds, and how far the op's result is from eager's."""
    sets = Sets(case)
    repetitions = len(sets.inputs) * math.ceil(
        _REPLAY_SECONDS / (len(sets.inputs) * (case.bytes / _BANDWIDTH + 2e-6))
    )
    exact = sets.eager(*sets.inputs[0]).float()
    distance = check(sets.fused(*sets.inputs[0]), exact, _TOLERANCE[case.dtype])
    return {
        "case": str(case),
        **timed(sets, repetitions, seconds, stream),
        "floor_us": round(case.bytes / _BANDWIDTH * 1e6, 3),
        "distance_from_eager": distance,
    }


def told(row: dict[str, Any]) -> str:
    times = f"{row['us']['bare']:8.2f} {row['us']['fusepass']:8.2f}"
    return f"{row['ratio']:.3f} {times} {row['floor_us']:8.2f}  {row['case']}"


def main(argv: Sequence[str] | None = None) -> None:
    sweep("few_rows.py", __doc__, argv, CASES, measure, told)


if __name__ == "__main__":
    main()
