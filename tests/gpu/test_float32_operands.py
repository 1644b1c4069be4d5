"""float32 in "highest": operands of each kind, several outputs, column sums, in every schedule."""

from __future__ import annotations

import pytest
import torch
from float32_problems import poison, stored

pytestmark = [pytest.mark.gpu, pytest.mark.hopper, pytest.mark.usefixtures("schedule")]

F = torch.nn.functional
SHAPES = [(300, 200, 2048), (130, 514, 9000), (65, 129, 777)]
Problem = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def problem(m: int, n: int, k: int, km: bool) -> Problem:
    """x, w, b and z, the latter in float64; what the allocator hands out next is full of NaN."""
    torch.manual_seed(k)
    x, w, b = stored(m, k, km), stored(n, k, km), torch.randn(n, device="cuda")
    poison(m, n)
    return x, w, b, x.double() @ w.double().T + b


def check(out: torch.Tensor, expected: torch.Tensor, size: torch.Tensor) -> None:
    """``size``: of the sums that were rounded, besides ``expected``."""
    assert ((out - expected).abs() <= 1e-6 * (size + expected.abs())).all()


@pytest.mark.parametrize("km", [False, True])
def test_operands_of_any_strides(km: bool) -> None:
    for m, n, k in SHAPES:
        x, w, b, z = problem(m, n, k, km)
        col, row = torch.randn(2 * n, device="cuda")[::2], torch.randn(m, 1, device="cuda")
        mat, across = torch.randn(m, n, device="cuda"), torch.randn(n, m, device="cuda").t()
        text = "mul(col0) mul(row0) add(mat0) mul(mat1)"
        (out,) = torch.ops.fusepass.gemm(x, [w], [b], text, [col, row, mat, across])
        size = x.double().abs() @ w.double().abs().T * (col * row * across).abs()
        check(out, (z * col * row + mat) * across, size)


def test_an_operand_that_is_the_same_for_a_batch() -> None:
    x = torch.randn(5, 70, 512, device="cuda")
    w, b = torch.randn(196, 512, device="cuda"), torch.randn(196, device="cuda")
    scale = torch.randn(5, 1, 196, device="cuda")
    (out,) = torch.ops.fusepass.gemm(x, [w], [b], "mul(mat0)", [scale.expand(5, 70, 196)])
    exact = F.linear(x.double(), w.double(), b.double()) * scale
    size = F.linear(x.double().abs(), w.double().abs()) * scale.abs()
    check(out, exact, size)


@pytest.mark.parametrize("km", [False, True])
def test_several_outputs_and_a_column_sum(km: bool) -> None:
    for m, n, k in SHAPES:
        x, w, b, z = problem(m, n, k, km)
        mat = torch.randn(m, n, device="cuda")
        text = "v0 = mul(mat0); v0, z, v0 col_sum"
        product, plain, total = torch.ops.fusepass.gemm(x, [w], [b], text, [mat])
        size = x.double().abs() @ w.double().abs().T
        check(plain, z, size)
        check(product, z * mat, size * mat.abs())
        check(total, (z * mat).sum(0), (size * mat.abs()).sum(0))
        again = torch.ops.fusepass.gemm(x, [w], [b], text, [mat])
        assert all(map(torch.equal, (product, plain, total), again))
