"""Every row of the table of stages, in every kernel: a new row is tested as soon as it is there."""

from __future__ import annotations

import pytest
import torch
from epilogues import CHANCE, error

import fusepass.op  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import Epilogue
from fusepass.epilogue import StageCall
from fusepass.kernels import plan_kernel
from fusepass.kernels.problem import plan_code
from fusepass.stages import STAGES

# float32 at both precisions; the others know but one.
KINDS = (
    (torch.float16, "highest"), (torch.bfloat16, "highest"), (torch.float64, "highest"),
    (torch.float32, "highest"), (torch.float32, "high"),
)  # fmt: skip
SCALARS = (-0.4, 0.8)
# One for the framework's GEMM and the pointwise kernel, and one for each GEMM of ours.
POINTWISE, FUSED = (133, 65, 147), (4096, 4096, 4096)


def epilogue_of(name: str) -> Epilogue:
    stage = StageCall(name, SCALARS[: STAGES[name].arity])
    return Epilogue((StageCall("mul", (0.7,)), stage))


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(POINTWISE, id="pointwise"),
        pytest.param(FUSED, id="fused", marks=pytest.mark.hopper),
    ],
)
@pytest.mark.parametrize("name", STAGES)
def test_no_worse_than_eager(
    name: str, shape: tuple[int, int, int], precision: str, dtype: torch.dtype
) -> None:
    m, k, n = shape
    epilogue = epilogue_of(name)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        if shape == FUSED and dtype != torch.float64:
            problem = (epilogue.structure, plan_code(dtype), m, n, k, False, False)
            assert plan_kernel(*problem, 0).split("|")[0] != "hybrid"
        x, w, b = (torch.randn(s, device="cuda").to(dtype) for s in ((m, k), (n, k), (n,)))
        w *= k**-0.5
        x[5, 3], x[77, 9] = float("nan"), float("inf")
        z = torch.nn.functional.linear(x, w, b)
        out = torch.ops.fusepass.linear(x, w, b, str(epilogue), [])
        bits = torch.ops.fusepass.linear(x, w, b, str(epilogue), [], numerics="bitwise")
    finally:
        torch.set_float32_matmul_precision(before)
    eager = epilogue.reference(z)
    exact = epilogue.reference(torch.nn.functional.linear(x.double(), w.double(), b.double()))
    assert torch.equal(out.isnan(), eager.isnan())
    most = 1.1 if precision == "high" else 1.0  # TF32
    assert error(out, exact) <= most * error(eager, exact) + CHANCE[dtype]
    number = ~eager.isnan()
    assert torch.equal(bits.isnan(), ~number) and torch.equal(bits[number], eager[number])
