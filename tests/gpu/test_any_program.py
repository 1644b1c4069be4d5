"""The general op on a GPU: every program is right, by whatever kernel or kernels it runs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

import pytest
import torch
from epilogues import CHANCE, error
from gemm_cases import (
    CASES,
    LAYOUTS,
    Case,
    bitwise_cases,
    case_id,
    eagerly,
    exactly,
    operands,
    problem,
)

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass.op import arguments

F = torch.nn.functional
gemm = torch.ops.fusepass.gemm
NAN = float("nan")
each_case = pytest.mark.parametrize("case", CASES, ids=case_id)
each_dtype = pytest.mark.parametrize("dtype", arguments.DTYPES, ids=str)

# Odd ones, those that vectors fit, one beyond a tile of the pointwise kernel, few rows, few
# columns: torch's GEMM and one kernel. What Hopper's own kernels take, too, each of which is built.
SHAPES = (
    ((133,), 65, 147),
    ((3, 41), 63, 256),
    ((2, 3, 7), 33, 264),
    ((1,), 40, 513),
    ((), 24, 129),
    ((517,), 72, 1),
)
FUSED_SHAPES = (((4, 160), 512, 1536), ((3, 256), 512, 1536), ((1100,), 256, 520))
FUSED_TEXTS = (
    "mul(col0) add(mat0)",
    "silu mul(z1)",
    "gelu, tanh",
    "mul(mat0), mul(mat0) col_sum",
    "mul(row0:f32)",
)
FUSED_CASES = [c for c in CASES if c.text in FUSED_TEXTS]


def poison(leading: tuple[int, ...], n: int) -> None:
    """What the allocator hands out next for an output is full of NaN."""
    full = [torch.full((*leading, n), NAN, dtype=d, device="cuda") for d in arguments.DTYPES] * 3
    full += [torch.full((n,), NAN, dtype=d, device="cuda") for d in arguments.DTYPES] * 3
    del full


@each_case
@each_dtype
def test_no_less_exact_than_eager(case: Case, dtype: torch.dtype) -> None:
    _compare(case, dtype, SHAPES)


@pytest.mark.parametrize("case", FUSED_CASES, ids=lambda c: c.text)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_no_less_exact_than_eager_by_fused_kernels(case: Case, dtype: torch.dtype) -> None:
    _compare(case, dtype, FUSED_SHAPES)


def _compare(
    case: Case, dtype: torch.dtype, shapes: Iterable[tuple[tuple[int, ...], int, int]]
) -> None:
    for leading, k, n in shapes:
        x, ws, bs = problem(case.weights, dtype, leading, k, n, "cuda")
        for layout in ("contiguous", "expanded", random.choice(list(LAYOUTS))):
            given = operands(case.epilogue, leading, n, dtype, layout, "cuda")
            poison(leading, n)
            got = gemm(x, ws, bs, case.text, given)
            exact, eager = (f(case, x, ws, bs, given) for f in (exactly, eagerly))
            assert len(got) == len(exact)
            for g, e, right, output in zip(got, eager, exact, case.epilogue.outputs, strict=True):
                wanted = output.dtype.in_torch if output.dtype else dtype
                assert g.dtype == wanted and g.is_contiguous() and g.shape == right.shape
                what = f"{case.text}, {leading} {k} {n}, {layout}"
                if wanted == torch.bool:
                    assert int((g != right).sum()) <= 1 + g.numel() // 500, what
                    continue
                assert bool(g.isfinite().all()), what
                room = CHANCE[wanted] + 2 * torch.finfo(wanted).eps / g.numel() ** 0.5
                assert error(g, right) <= error(e.to(wanted), right) * 1.001 + room, what


@each_case
@each_dtype
def test_strides_change_nothing(case: Case, dtype: torch.dtype) -> None:
    for (leading, k, n), (layout, lie) in itertools.product(
        (((6, 23), 65, 147), ((5, 32), 63, 256)), LAYOUTS.items()
    ):
        x, ws, bs = problem(case.weights, dtype, leading, k, n, "cuda")
        for given in (
            operands(case.epilogue, leading, n, dtype, layout, "cuda"),
            operands(case.epilogue, leading, n, dtype, "expanded", "cuda"),
        ):
            plain = [t.contiguous() for t in given]
            expected = gemm(x, ws, bs, case.text, plain)
            for g, e in zip(gemm(x, ws, bs, case.text, given), expected, strict=True):
                assert torch.equal(g, e), f"{case.text}, {layout}"
            turned = gemm(lie(x), [lie(w) for w in ws], bs, case.text, given)
            for g, e in zip(turned, expected, strict=True):
                if g.dtype != torch.bool:  # cuBLAS may sum in another order
                    room = 8 * torch.finfo(dtype).eps
                    assert error(g, e.double()) <= room, f"{case.text}, {layout}"


def test_rows_at_three_strides() -> None:
    """More than a kernel addresses: such an operand is copied."""
    x, (w,), (b,) = problem(1, torch.float32, (3, 5, 7), 32, 64, "cuda")
    whole = torch.randn(6, 10, 14, 64, device="cuda")
    mat = whole[::2, ::2, ::2]
    (got,) = gemm(x, [w], [b], "add(mat0)", [mat])
    assert torch.equal(got, F.linear(x, w, b) + mat)


@pytest.mark.parametrize(
    ("case", "dtype"), [*bitwise_cases()], ids=lambda v: getattr(v, "text", str(v))
)
def test_bitwise_is_eager(case: Case, dtype: torch.dtype) -> None:
    for leading, k, n in SHAPES[:5]:
        x, ws, bs = problem(case.weights, dtype, leading, k, n, "cuda")
        ws[0][0, 2] = float("inf")
        for layout in ("row-strided", "expanded"):
            given = operands(case.epilogue, leading, n, dtype, layout, "cuda")
            got = gemm(x, ws, bs, case.text, given, numerics="bitwise")
            for g, e in zip(got, eagerly(case, x, ws, bs, given), strict=True):
                torch.testing.assert_close(
                    g, e.to(g.dtype), rtol=0, atol=0, equal_nan=True, msg=f"{case.text} {leading}"
                )


@each_dtype
def test_nan_and_infinity_come_through(dtype: torch.dtype) -> None:
    x, ws, bs = problem(2, dtype, (37,), 65, 147, "cuda")
    x[3, 4], x[5, 6], ws[0][7, 8] = NAN, float("inf"), float("-inf")
    for case in CASES:
        given = operands(case.epilogue, (37,), 147, dtype, "contiguous", "cuda")
        for t in given:
            if t.is_floating_point() and t.dim() == 2 and t.shape[1] > 1:
                t[9, 10], t[11, 12] = NAN, float("inf")
        some = ws[: case.weights], bs[: case.weights]
        got = gemm(x, *some, case.text, given)
        for g, e in zip(got, eagerly(case, x, *some, given), strict=True):
            if g.dtype != torch.bool:
                assert torch.equal(g.isnan(), e.isnan()), case.text
                infinite = e.isinf()
                assert torch.equal(g[infinite], e.to(g.dtype)[infinite]), case.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("m, n", [(1, 1), (70000, 3), (50432, 264), (33, 20000)])
def test_column_sums(dtype: torch.dtype, m: int, n: int) -> None:
    """As close as torch's own, and the same in every call."""
    x, (w,), _ = problem(1, dtype, (m,), 8, n, "cuda")
    mat = torch.randn(m, n, device="cuda").to(dtype)
    text = "v0 = mul(mat0); v0, v0 col_sum, v0 col_sum:f64"
    out, narrow, wide = gemm(x, [w], [None], text, [mat])
    z = F.linear(x, w)
    exact = (z.double() * mat.double()).sum(0)
    size = (z.double() * mat.double()).abs().sum(0)  # of what is added up
    unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert bool(((wide - exact).abs() <= 4 * unit * m**0.5 * size + 1e-300).all())
    assert torch.equal(narrow, wide.to(dtype))
    for _ in range(3):
        assert all(
            torch.equal(a, b)
            for a, b in zip(gemm(x, [w], [None], text, [mat]), (out, narrow, wide), strict=True)
        )


def test_more_than_2_to_the_31_elements() -> None:
    x = torch.randn(70000, 8, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(32768, 8, device="cuda", dtype=torch.bfloat16)
    col = torch.randn(32768, device="cuda", dtype=torch.bfloat16)
    row = torch.randn(70000, 1, device="cuda", dtype=torch.bfloat16)
    mat = torch.randn(1, 32768, device="cuda", dtype=torch.bfloat16).expand(70000, -1)
    text = "mul(col0) mul(row0) add(mat0)"
    (out,) = gemm(x, [w], [None], text, [col, row, mat])
    for rows in (slice(0, 64), slice(65504, 65600), slice(69936, 70000)):
        z = F.linear(x[rows].float(), w.float())
        expected = z * col.float() * row[rows].float() + mat[rows].float()
        torch.testing.assert_close(out[rows].float(), expected, rtol=3e-2, atol=3e-2)


def test_empty() -> None:
    text = "v0 = add(mat0); v0, v0 col_sum"
    for m, k, n in ((0, 5, 4), (3, 0, 4), (3, 5, 0), (0, 0, 0)):
        x, w = torch.randn(m, k, device="cuda"), torch.randn(n, k, device="cuda")
        mat = torch.randn(m, n, device="cuda")
        out, sums = gemm(x, [w], [None], text, [mat])
        torch.testing.assert_close(out, F.linear(x, w) + mat)
        torch.testing.assert_close(sums, out.sum(0))
