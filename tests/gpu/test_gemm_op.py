"""The general op on a GPU: every program is right, by whatever kernel or kernels it runs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from epilogues import CHANCE, error
from gemm_cases import CASES, LAYOUTS, Case, eagerly, exactly, operands, problem
from torch import Tensor

import fusepass.op  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import Epilogue, arguments
from fusepass.ir import DType

F = torch.nn.functional
gemm = torch.ops.fusepass.gemm
NAN = float("nan")
each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.text or "z")
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
FUSED_SHAPES = (((4, 160), 512, 1536), ((1100,), 256, 520))
FUSED_CASES = [c for c in CASES if c.text in ("mul(col0) add(mat0)", "silu mul(z1)", "gelu, tanh",
                                              "mul(mat0), mul(mat0) col_sum", "mul(row0:f32)")]  # fmt: skip


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


@each_case
@each_dtype
def test_bitwise_is_eager(case: Case, dtype: torch.dtype) -> None:
    wide = [i for i in case.epilogue.operands if i.dtype not in (None, DType.BOOL)]
    if any(i.dtype is not DType.of(dtype) for i in wide):
        pytest.skip("eager rounds to another dtype: a program must say so")
    for leading, k, n in SHAPES[:5]:
        x, ws, bs = problem(case.weights, dtype, leading, k, n, "cuda")
        ws[0][0, 2] = float("inf")
        given = operands(case.epilogue, leading, n, dtype, "row-strided", "cuda")
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


# --- streams, graphs, devices -------------------------------------------------------------------

TEXT = "v0 = mul($0) add(mat0) gelu; v0, v0 col_sum"


def _model(x: Tensor, w: Tensor, c: Tensor, mat: Tensor) -> tuple[Tensor, Tensor]:
    out = F.gelu(F.linear(x.double(), w.double()) * c.double() + mat.double())
    return out, out.sum(0)


def _small(dtype: torch.dtype, m: int = 96) -> tuple[Any, ...]:
    x, (w,), _ = problem(1, dtype, (m,), 64, 256, "cuda")
    c = torch.tensor(0.7, device="cuda", dtype=dtype)
    return x, w, c, torch.randn(m, 256, device="cuda").to(dtype)


def _assert_close(got: Any, expected: Any) -> None:
    for g, e in zip(got, expected, strict=True):
        assert error(g, e) <= 4 * torch.finfo(g.dtype).eps + 2.0**-20


def test_the_current_stream_and_no_wait() -> None:
    x, w, c, mat = _small(torch.float32)
    gemm(x, [w], [None], TEXT, [c, mat])  # builds
    stream, late = torch.cuda.Stream(), torch.zeros_like(x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            late.copy_(x)
            out = gemm(late, [w], [None], TEXT, [c, mat])
            assert not stream.query(), "the op waited for the device"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    _assert_close(out, _model(x, w, c, mat))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("warm", [False, True])
def test_cuda_graph(dtype: torch.dtype, warm: bool) -> None:
    x, w, c, mat = _small(dtype, 97 + warm)
    text = TEXT if warm else TEXT.replace("gelu", "silu")  # a program met in the capture
    F.linear(x, w)
    if warm:
        gemm(x, [w], [None], text, [c, mat])
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out = gemm(x, [w], [None], text, [c, mat])
    for seed in range(3):
        x.copy_(torch.randn_like(x))
        c.fill_(seed)
        graph.replay()
        expected = _model(x, w, c, mat)
        if not warm:
            z = F.linear(x.double(), w.double()) * c.double() + mat.double()
            expected = F.silu(z), F.silu(z).sum(0)
        _assert_close(out, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_second_device() -> None:
    x, w, c, mat = (t.to("cuda:1") for t in _small(torch.float32))
    out = gemm(x, [w], [None], TEXT, [c, mat])
    assert out[0].device == x.device and torch.cuda.current_device() == 0
    _assert_close(out, _model(x, w, c, mat))


# --- the op as torch sees it --------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad: bool) -> None:
    for case in (CASES[2], CASES[8], CASES[-1]):
        x, ws, bs = problem(case.weights, torch.float32, (2, 3), 5, 4, "cuda")
        given = operands(case.epilogue, (2, 3), 4, torch.float32, "contiguous", "cuda")
        for t in (x, *ws, *given):
            t.requires_grad_(requires_grad)
        torch.library.opcheck(gemm.default, (x, ws, bs, case.text, given))


def test_gradients_and_transforms() -> None:
    x, ws, bs = problem(2, torch.float64, (3, 6), 5, 4, "cuda")
    mat = torch.randn(3, 6, 4, device="cuda", dtype=torch.float64)

    def ours(x: Tensor) -> Tensor:
        return gemm(x, ws, bs, "silu mul(z1) add(mat0)", [mat])[0].square().sum()

    def theirs(x: Tensor) -> Tensor:
        value = F.silu(F.linear(x, ws[0], bs[0])) * F.linear(x, ws[1], bs[1]) + mat
        return value.square().sum()

    expected = torch.func.grad(theirs)(x)
    torch.testing.assert_close(torch.func.grad(ours)(x), expected)
    x.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(ours(x), x)[0], expected)
    each = torch.vmap(lambda x, m: gemm(x, ws, bs, "silu mul(z1) add(mat0)", [m])[0])
    torch.testing.assert_close(each(x, mat), gemm(x, ws, bs, "silu mul(z1) add(mat0)", [mat])[0])


def test_constant_overload() -> None:
    x, ws, bs = problem(2, torch.bfloat16, (64,), 64, 128, "cuda")
    (expected,) = gemm(x, ws, bs, "silu mul(z1)", [])
    assert torch.equal(gemm.constant(x, ws, bs, "silu mul(z1)")[0], expected)


def test_errors_name_the_argument() -> None:
    x, (w,), (b,) = problem(1, torch.float32, (6,), 5, 4, "cuda")
    mat = torch.randn(6, 4, device="cuda")
    for given, message in (
        ((x, [], [], "gelu", []), "weights must be 1, got 0"),
        ((x, [w], [b], "mul(z1)", []), "weights must be 2"),
        ((x, [w, w], [b], "mul(z1)", []), "biases must be as many"),
        ((x, [w], [b.half()], "gelu", []), r"cast biases\[0\]"),
        ((x, [w], [b], "add(mat0)", [mat[:5]]), r"mat0 must be \[6, 4\]"),
        ((x, [w], [b], "add(mat0)", [mat.cpu()]), "mat0 is on cpu"),
        ((x, [w], [b], "add(mat0)", [mat.half()]), "or write mat0:f16"),
        ((x, [w], [b], "add(row0)", [mat]), r"row0 must be \[6, 1\]"),
        ((x, [w], [b], "gelo", []), "unknown operation 'gelo'"),
        ((x.bool(), [w], [b], "gelu", []), "x must be float32"),
    ):
        with pytest.raises(ValueError, match=message):
            gemm(*given)


def test_a_program_of_many_operands() -> None:
    text = str(Epilogue.parse(
        "mul($0) add(col0) mul(row0) add(mat0) add(mat1:f32) add(mat2) mul(mat3:bool) "
        "add(mat4) add(mat5) add(mat6:f64) add(mat7) add(col7:f16) mul(row7:f32)"
    ))  # fmt: skip
    for dtype in arguments.DTYPES:
        x, ws, bs = problem(1, dtype, (5, 12), 24, 264, "cuda")
        given = operands(Epilogue.parse(text), (5, 12), 264, dtype, "contiguous", "cuda")
        (got,) = gemm(x, ws, bs, text, given)
        z = F.linear(x.double(), ws[0].double(), bs[0].double())  # type: ignore[union-attr]
        wide = [t if t.dtype == torch.bool else t.double() for t in given]
        exact = Epilogue.parse(text).reference(z, *wide)
        assert isinstance(exact, Tensor)
        assert error(got, exact) <= 4 * torch.finfo(dtype).eps
