"""float32 in "highest": operands of each kind, several outputs, column sums, in every schedule."""

from __future__ import annotations

import pytest
import torch
from float32_problems import poison, stored

from fusepass import kernels

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


def rows_of(m: int, n: int, first: int, extra: int) -> torch.Tensor:
    """Random [m, n] amid NaN, from ``first`` on, rows n + extra apart; some is not finite."""
    whole = torch.full((m * (n + extra) + first,), float("nan"), device="cuda")
    part = whole[first:].as_strided((m, n), (n + extra, 1))
    part.copy_(torch.randn(m, n, device="cuda"))
    part[m // 2, n // 3], part[m - 1, n - 1] = float("nan"), float("inf")
    return part


@pytest.mark.parametrize("unsafe", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(2100, 1028, 40), (2100, 1028, 1000), (100, 68, 320)])
def test_matrices_beside_many_tiles(m: int, n: int, k: int, unsafe: bool) -> None:
    """To the bit what the same kernel's z gives: by TMA behind the products, from memory, or both.

    Of 2100 x 1028 a multiprocessor has several tiles, so that the ring goes on behind a matrix.
    ``unsafe``: some tiles are summed in float64 while their matrices wait.
    """
    torch.manual_seed(k)
    x, w = torch.randn(m, k, device="cuda"), torch.randn(n, k, device="cuda")
    if unsafe:
        x[m // 3 : m // 2] *= torch.exp(4.0 * torch.randn(m // 2 - m // 3, k, device="cuda"))
    b = torch.randn(n, device="cuda")
    (z,) = torch.ops.fusepass.gemm(x, [w], [b], "", [])
    whole, wide = rows_of(m, n, 0, 0), rows_of(m, n, 4, 12)
    shifted, odd = rows_of(m, n, 1, 3), rows_of(m, n, 0, 1)
    for first, second, third in [
        (whole, wide, shifted), (shifted, whole, odd), (wide, odd, whole), (odd, shifted, wide),
    ]:  # fmt: skip
        for _ in range(2):
            poison(m, n)
            (one,) = torch.ops.fusepass.gemm(x, [w], [b], "add(mat0)", [first])
            (two,) = torch.ops.fusepass.gemm(x, [w], [b], "add(mat0) mul(mat1)", [first, second])
            text = "add(mat0) mul(mat1) add(mat2)"
            (all3,) = torch.ops.fusepass.gemm(x, [w], [b], text, [first, second, third])
            same = {"rtol": 0.0, "atol": 0.0, "equal_nan": True}
            torch.testing.assert_close(one, z + first, **same)
            torch.testing.assert_close(two, (z + first) * second, **same)
            torch.testing.assert_close(all3, (z + first) * second + third, **same)


def test_an_operand_that_is_the_same_for_a_batch() -> None:
    x = torch.randn(5, 70, 512, device="cuda")
    w, b = torch.randn(196, 512, device="cuda"), torch.randn(196, device="cuda")
    scale = torch.randn(5, 1, 196, device="cuda")
    (out,) = torch.ops.fusepass.gemm(x, [w], [b], "mul(mat0)", [scale.expand(5, 70, 196)])
    exact = F.linear(x.double(), w.double(), b.double()) * scale
    size = F.linear(x.double().abs(), w.double().abs()) * scale.abs()
    check(out, exact, size)


@pytest.mark.parametrize("rows", [16, 48, 64, 208])
def test_numbers_a_column_of_groups_of_rows(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whole warps' rows, beside columns that are the same for all."""
    asked, ask = [], kernels.plan_kernel
    monkeypatch.setattr(kernels, "plan_kernel", lambda *p: asked.append(ask(*p)) or asked[-1])
    for n, k in ((196, 512), (129, 2048), (514, 40)):
        x, w = torch.randn(5, rows, k, device="cuda"), torch.randn(n, k, device="cuda")
        gate = torch.full((5, 1, 3 * n), float("nan"), device="cuda")[..., n : 2 * n]
        gate.copy_(torch.randn(5, 1, n))
        gates = gate, torch.randn(5, 1, 2 * n, device="cuda")[..., ::2].bfloat16()
        col, mat = torch.randn(n, device="cuda"), torch.randn(5, rows, n, device="cuda")
        text = "mul(col0) mul(col1:bf16) mul(col2) add(mat0)"
        poison(5 * rows, n)
        (out,) = torch.ops.fusepass.gemm(x, [w], [None], text, [*gates, col, mat])
        factor = gates[0].double() * gates[1].double() * col.double()
        exact = F.linear(x.double(), w.double()) * factor + mat.double()
        check(out, exact, F.linear(x.double().abs(), w.double().abs()) * factor.abs())
    assert len(asked) == 3 and all(a.startswith("split") for a in asked), asked


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
