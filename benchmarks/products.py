"""16-bit products of whole models on a GPU, alone and with what reads tensors beside them.

    python benchmarks/products.py --out results/products.json

Times over the bare product's, without bias, by whatever cuBLAS picks. "alone": the products of
three models' layers, forward, input gradient and weight gradient, where the plan takes them; where
it does not, torch's own runs, and the ratio is 1. "operands": what an epilogue adds that reads
matrices or vectors. "gradient": an activation's derivative at a saved matrix, with its column sums.
"float32": a residual, over the same kernel without one. Protocol and rotation are linear.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from beside_bare import sweep, timed
from linear_cases import floor_seconds
from linear_peers import check
from torch import Tensor
from torch.nn import functional as F

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass.kernels import fuses

_SETS_BYTES = 250e6
_REPLAY_SECONDS = 2e-3
_TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-5}
_GELU = "v0 = mat0 gelu_derivative mul(z); v0, v0 col_sum"


def _gelu_backward(z: Tensor, mat: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(z, mat)


# Epilogue -> what it is of z, a matrix, a vector; of several results the first.
EPILOGUES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "": lambda z, mat, col: z,
    "add(mat0)": lambda z, mat, col: z + mat,
    "mul(col0) add(mat0)": lambda z, mat, col: z * col + mat,
    "add(mat0) gelu": lambda z, mat, col: F.gelu(z + mat),
    _GELU: lambda z, mat, col: _gelu_backward(z, mat),
}


@dataclass(frozen=True)
class Case:
    """z [m, n] = x w^T of x [m, k], stored [k, m] if ``x_is_km``; w stored [k, n] if ``w_is_kn``.

    Attributes:
        group: of the table.
        model: whose product it is, and which.
    """

    group: str
    m: int
    k: int
    n: int
    model: str = ""
    epilogue: str = ""
    w_is_kn: bool = False
    x_is_km: bool = False
    dtype: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        named = f"{self.model} " if self.model else ""
        return f"{named}{self.m}x{self.k}->{self.n} {self.epilogue}".strip()

    @property
    def taken(self) -> bool:
        """Whether the plan has a kernel of ours for it."""
        orders = (self.w_is_kn, self.x_is_km)
        sizes = (self.m, self.n, self.k)
        device = torch.device("cuda", torch.cuda.current_device())
        return bool(self.epilogue) or fuses(device, self.dtype, *sizes, *orders, True)


def _layer(model: str, tokens: int, sizes: Sequence[tuple[int, int]], kn: bool) -> list[Case]:
    """Forward, input gradient and weight gradient of Linears of (K, N); ``kn``: stored [K, N]."""
    cases = []
    for k, n in sizes:
        cases += [
            Case("alone", tokens, k, n, f"{model}, forward", w_is_kn=kn),
            Case("alone", tokens, n, k, f"{model}, input gradient", w_is_kn=not kn),
            Case("alone", *((k, tokens, n) if kn else (n, tokens, k)), f"{model}, weight gradient",
                 w_is_kn=True, x_is_km=True),
        ]  # fmt: skip
    return cases


_OPERANDS = (
    (8192, 768, 3072), (16384, 1024, 4096), (2048, 8192, 8192),
    (8192, 3072, 768), (16384, 4096, 1024), (50432, 3072, 768),
)  # fmt: skip
_SIZES = [(1024, 1024), (1024, 4096), (4096, 1024)]
CASES = (
    *_layer("ViT-L", 50432, [(1024, 3072), *_SIZES], False),
    *_layer("BERT-large", 16384, _SIZES, False),
    *_layer("GPT-2 medium", 16384, [(1024, 3072), *_SIZES], True),
    *(
        Case("operands", *size, epilogue=text)
        for size in _OPERANDS
        for text in ("add(mat0)", "mul(col0) add(mat0)", "add(mat0) gelu")
    ),
    *(Case("gradient", *size, epilogue=_GELU, w_is_kn=True) for size in _OPERANDS[:3]),
    *(Case("float32", *size, epilogue="add(mat0)", dtype=torch.float32) for size in _OPERANDS[:3]),
)


class Sets:
    """As many inputs of a case as do not fit into the cache together."""

    def __init__(self, case: Case) -> None:
        self.case, m, k, n = case, case.m, case.k, case.n
        size = case.dtype.itemsize * (m * k + n * k + m * n)
        more = {"device": "cuda", "dtype": case.dtype}
        self.inputs = []
        for _ in range(max(2, min(64, math.ceil(_SETS_BYTES / size)))):
            x, w = torch.randn(m, k, **more), torch.randn(n, k, **more).mul_(k**-0.5)
            x = x.t().contiguous().t() if case.x_is_km else x
            w = w.t().contiguous().t() if case.w_is_kn else w
            mat = torch.randn(m, n, **more) if case.epilogue else x
            self.inputs.append((x, w, mat, torch.randn(n, **more)))

    def bare(self, x: Tensor, w: Tensor, mat: Tensor, col: Tensor) -> Tensor:
        if self.case.dtype is torch.float32:
            return torch.ops.fusepass.linear(x, w, None, "", [])
        return torch.mm(x, w.t())

    def eager(self, x: Tensor, w: Tensor, mat: Tensor, col: Tensor) -> Tensor:
        return EPILOGUES[self.case.epilogue](torch.mm(x, w.t()), mat, col)

    def fused(self, x: Tensor, w: Tensor, mat: Tensor, col: Tensor) -> Any:
        text = self.case.epilogue
        if not text:
            return torch.ops.fusepass.linear(x, w, None, "", [])
        operands = [col, mat] if "col0" in text else [mat]
        return tuple(torch.ops.fusepass.gemm(x, [w], [None], text, operands))


def measure(case: Case, seconds: float, stream: Any) -> dict[str, Any]:
    """The times of a case, microseconds, and how far the op's result is from eager's."""
    row: dict[str, Any] = {"group": case.group, "case": str(case), "taken": case.taken}
    if not case.taken:
        return row | {"ratio": 1.0}
    sets = Sets(case)
    kind = "float32 highest" if case.dtype is torch.float32 else "bfloat16"
    floor = floor_seconds((case.m, case.k, case.n), kind)
    count = len(sets.inputs)
    repetitions = count * math.ceil(_REPLAY_SECONDS / (1.4 * floor * count))
    exact = sets.eager(*sets.inputs[0]).float()
    distance = check(sets.fused(*sets.inputs[0]), exact, _TOLERANCE[case.dtype])
    times = timed(sets, repetitions, seconds, stream)
    return row | times | {"distance_from_eager": distance}


def told(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.3f} {row.get('us', 'torch')} {row['case']}"


def main(argv: Sequence[str] | None = None) -> None:
    rows = sweep("products.py", __doc__, argv, CASES, measure, told)
    ratios = [row["ratio"] for row in rows if row["group"] == "alone"]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"alone: geometric mean {mean:.3f}, worst {max(ratios):.3f}")


if __name__ == "__main__":
    main()
