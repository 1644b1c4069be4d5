"""Whole compiled models on a GPU: ``bitwise`` is eager's bits, ``accurate`` no further from exact.

At sizes that Hopper's own kernels take, in ``accurate``; the other tests here call the op itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from epilogues import CHANCE, error
from small_models import compiled, fused
from torch import Tensor, nn
from torch._dynamo.utils import counters

import fusepass.op.linear

F = torch.nn.functional
ROWS, WIDTH, HIDDEN = 1024, 512, 2048
Gemm = Callable[[Tensor, Tensor, Tensor], Tensor]
GEMMS: dict[str, Gemm] = {
    "linear": F.linear,
    "linear, 3-D, no bias": lambda x, w, b: F.linear(x.view(4, -1, x.shape[-1]), w),
    "addmm, [K, N]": lambda x, w, b: torch.addmm(b, x, w.view(w.shape[::-1])),
}


class Model(nn.Module):
    def __init__(self, gemm: Gemm, approximate: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(HIDDEN, WIDTH) * WIDTH**-0.5)
        self.bias = nn.Parameter(torch.randn(HIDDEN))
        self.gemm, self.approximate = gemm, approximate

    def forward(self, x: Tensor) -> Tensor:
        z = self.gemm(x, self.weight, self.bias)
        return F.gelu(F.hardtanh(z * 0.3, -2, 2), approximate=self.approximate)


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("numerics", fusepass.op.arguments.NUMERICS)
@pytest.mark.parametrize("dtype", fusepass.op.arguments.DTYPES, ids=str)
@pytest.mark.parametrize("gemm", GEMMS)
def test_numerics(gemm: str, dtype: torch.dtype, numerics: str, grad: bool) -> None:
    model = Model(GEMMS[gemm], "tanh" if grad else "none").to("cuda", dtype)
    x = torch.randn(ROWS, WIDTH, device="cuda").to(dtype)
    if numerics == "bitwise":
        x[3, 5], x[77, 9] = float("nan"), float("inf")
    with torch.set_grad_enabled(grad):
        out = compiled(model, options={"fusepass.numerics": numerics})(x)
        eager = model(x)
    assert fused() == 1 and out.requires_grad == grad
    out, eager = out.detach(), eager.detach()
    if numerics == "bitwise":
        assert torch.equal(out.isnan(), eager.isnan())
        assert torch.equal(out.nan_to_num(), eager.nan_to_num())
        return
    exact = copy.deepcopy(model).double()(x.double()).detach()
    assert error(out, exact) <= error(eager, exact) + CHANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    model = Model(F.linear, "none").to("cuda")
    x = torch.randn(ROWS, WIDTH, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", dtype):
        out, eager = compiled(model)(x), model(x)
    exact = copy.deepcopy(model).double()(x.double()).detach()
    assert fused() == 1 and out.dtype == eager.dtype == dtype
    assert error(out, exact) <= error(eager, exact) + CHANCE[dtype]


def test_a_tf32_product_alone(run_kernels: Callable[[Callable[[], object]], list[str]]) -> None:
    """Where torch may round float32 to TF32, ours runs it where that is faster, and is as close."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        model = nn.Linear(768, 3072, device="cuda").requires_grad_(False)
        x = torch.randn(8192, 768, device="cuda")
        call = compiled(model)
        out, eager = call(x), model(x)
        names = run_kernels(lambda: call(x))
    finally:
        torch.set_float32_matmul_precision(before)
    exact = copy.deepcopy(model).double()(x.double())
    assert counters["fusepass"]["gemms"] == 1
    assert any("fusepass_gemm" in name for name in names), names
    assert (out - exact).norm() <= 1.1 * (eager - exact).norm()


def test_a_product_alone_is_planned_with_its_bias(
    run_kernels: Callable[[Callable[[], object]], list[str]],
) -> None:
    """cuBLAS takes longer to add one, ours does not: each call has the kernel that is faster."""
    x, w, b = (
        torch.randn(*s, device="cuda").bfloat16() for s in ((2048, 1536), (3072, 1536), (3072,))
    )
    for bias in (b, None, b):
        out = torch.ops.fusepass.linear(x, w, bias, "", [])  # plans, and builds
        names = run_kernels(lambda bias=bias: torch.ops.fusepass.linear(x, w, bias, "", []))
        assert any("fusepass_gemm" in name for name in names) is (bias is not None), names
        exact = F.linear(x.double(), w.double(), None if bias is None else bias.double())
        eager = F.linear(x, w, bias)
        assert error(out, exact) <= error(eager, exact) + CHANCE[torch.bfloat16]
