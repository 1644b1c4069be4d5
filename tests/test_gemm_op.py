"""The general op on the CPU, and what holds on every device: schema, errors, fakes, transforms."""

from __future__ import annotations

import itertools
from typing import Any

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
from hypothesis import given
from hypothesis import strategies as st
from ir.ir_programs import SAME_EVERYWHERE, programs

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import Epilogue
from fusepass.ir import DType
from fusepass.ir.outputs import taken
from fusepass.op import arguments, cpu

F = torch.nn.functional
gemm = torch.ops.fusepass.gemm
linear_with_preact = torch.ops.fusepass.linear_with_preact
each_case = pytest.mark.parametrize("case", CASES, ids=case_id)


# --- numerics -----------------------------------------------------------------------------------


@each_case
@pytest.mark.parametrize("dtype", arguments.DTYPES)
@pytest.mark.parametrize(
    ("leading", "layout"),
    [((33,), ""), ((3, 11), ""), ((2, 3, 4), "expanded"), ((3, 11), "expanded"), ((), "")],
    ids=str,
)
def test_no_less_exact_than_eager(
    case: Case, dtype: torch.dtype, leading: tuple[int, ...], layout: str
) -> None:
    x, ws, bs = problem(case.weights, dtype, leading)
    given = operands(case.epilogue, leading, 19, dtype, layout)
    got = gemm(x, ws, bs, case.text, given)
    exact = exactly(case, x, ws, bs, given)
    eager = eagerly(case, x, ws, bs, given)
    assert len(got) == len(exact)
    for output, g, e, ours in zip(exact, got, eager, case.epilogue.outputs, strict=True):
        wanted = ours.dtype.in_torch if ours.dtype else dtype
        assert g.dtype == wanted and g.is_contiguous() and g.shape == output.shape
        if wanted == torch.bool:
            assert torch.equal(g, e)
            continue
        room = CHANCE[wanted] + torch.finfo(wanted).eps / max(1, g.numel()) ** 0.5
        assert error(g, output) <= error(e.to(wanted), output) + room, case.text


@pytest.mark.parametrize(
    ("case", "dtype"), [*bitwise_cases()], ids=lambda v: getattr(v, "text", str(v))
)
def test_bitwise_is_eager(case: Case, dtype: torch.dtype) -> None:
    x, ws, bs = problem(case.weights, dtype)
    x[0, 3, 5], ws[0][5, 2] = float("nan"), float("inf")
    for layout in ("contiguous", "expanded"):
        given = operands(case.epilogue, (3, 11), 19, dtype, layout)
        got = gemm(x, ws, bs, case.text, given, numerics="bitwise")
        for g, e in zip(got, eagerly(case, x, ws, bs, given), strict=True):
            torch.testing.assert_close(g, e.to(g.dtype), rtol=0, atol=0, equal_nan=True)


@each_case
@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
def test_strides_change_nothing(case: Case, layout: str) -> None:
    torch.manual_seed(0)
    x, ws, bs = problem(case.weights, torch.float32)
    given = operands(case.epilogue, (3, 11), 19, torch.float32, layout)
    plain = [t.contiguous() for t in given]
    lie = LAYOUTS.get(layout, torch.clone)
    for numerics in arguments.NUMERICS:
        expected = gemm(x, ws, bs, case.text, plain, numerics=numerics)
        got = gemm(lie(x), [lie(w) for w in ws], bs, case.text, given, numerics=numerics)
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(g, e)


@given(program=programs(SAME_EVERYWHERE, rounded=False), seed=st.integers(0, 2**31))
def test_any_program(program: Epilogue, seed: int) -> None:
    """In float64, where nothing is rounded on the way, it is the program's reference."""
    torch.manual_seed(seed)
    x, ws, bs = problem(arguments.num_weights(program), torch.float64, (2, 5), 6, 7)
    given = operands(program, (2, 5), 7, torch.float64, ("contiguous", "expanded")[seed % 2])
    zs = [F.linear(x, w, b) for w, b in zip(ws, bs, strict=True)]
    expected = program.reference(zs[0], *given, z1=zs[1] if len(zs) > 1 else None)
    for block in (1 << 19, 100):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "_BLOCK", block)
            got = gemm(x, ws, bs, str(program), given)
        for g, e in zip(got, expected if isinstance(expected, tuple) else [expected], strict=True):
            torch.testing.assert_close(g, e, equal_nan=True)


@each_case
def test_outputs_share_no_memory(case: Case) -> None:
    x, ws, bs = problem(case.weights, torch.float32)
    given = operands(case.epilogue, (3, 11), 19, torch.float32)
    for numerics in arguments.NUMERICS:
        got = gemm(x, ws, bs, case.text, given, numerics=numerics)
        kept = [t.clone() for t in given]
        for output in got:
            others = [t.clone() for t in got if t is not output]
            output.zero_()
            pairs = zip(others, (t for t in got if t is not output), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
        assert all(torch.equal(a, b) for a, b in zip(kept, given, strict=True))


def test_linear_with_preact_is_the_program_with_z() -> None:
    x, (w,), (b,) = problem(1, torch.bfloat16)
    for text in ("mul(0.5) clamp(-2.0, 2.0) gelu", ""):
        both = gemm(x, [w], [b], f"{text or 'z'}, z", [])
        for g, e in zip(both, linear_with_preact(x, w, b, text, []), strict=True):
            assert torch.equal(g, e)


def test_which_outputs_a_gemm_has_written() -> None:
    written = taken(Epilogue.parse("store:f32, z1, z, z1 col_sum"))
    assert [str(v) for v in written] == ["None", "z1", "z", "None"]


def test_bitwise_rounds_as_the_program_says_or_to_x() -> None:
    """An operand of another dtype does not make the next operation's result a wider one."""
    x, (w,), (b,) = problem(1, torch.bfloat16)
    m = torch.randn(3, 11, 19)
    z = F.linear(x, w, b)
    (narrow,) = gemm(x, [w], [b], "add(mat0:f32) mul(3.0)", [m], numerics="bitwise")
    assert torch.equal(narrow, (z + m).bfloat16() * 3)
    (wide,) = gemm(x, [w], [b], "add(mat0:f32)~f32 mul(3.0)", [m], numerics="bitwise")
    assert torch.equal(wide, ((z + m) * 3).bfloat16())


# --- errors -------------------------------------------------------------------------------------

_X, _W = torch.zeros(2, 3), torch.zeros(4, 3)
_X3 = torch.zeros(2, 5, 3)
_COL, _ROW, _MAT = torch.zeros(4), torch.zeros(2, 1), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((_X, [], [], "gelu", []), "reads z alone, so weights must be 1, got 0"),
        ((_X, [_W, _W], [None, None], "gelu", []), "weights must be 1, got 2"),
        ((_X, [_W], [None], "mul(z1)", []), "reads z and z1, so weights must be 2, got 1"),
        ((_X, [_W, _W], [None], "mul(z1)", []), "biases must be as many as weights, 2, got 1"),
        ((_X, [_W, _W[:3]], [None, None], "mul(z1)", []), "weights must be both"),
        ((_X, [_W, _W.t()], [None, None], "mul(z1)", []), r"weights\[1\] must be \[N, 3\]"),
        ((_X, [_W], [_COL[:3]], "gelu", []), r"biases\[0\] must be \[4\]"),
        ((_X, [_W.half()], [None], "gelu", []), r"cast weights\[0\] with"),
        ((_X, [_W], [None], "mul(col0)", [_ROW]), r"operand col0 must be \[4\].*got \[2, 1\]"),
        ((_X, [_W], [None], "mul(col0)", [_COL[:3]]), r"operand col0 must be \[4\].*got \[3\]"),
        ((_X3, [_W], [None], "mul(col0)", [_MAT]), r"for groups of rows.*got \[2, 4\]"),
        ((_X3, [_W], [None], "mul(col0)", [_MAT.view(2, 4, 1)]), r"for groups.*got \[2, 4, 1\]"),
        ((_X3, [_W], [None], "mul(col0)", [torch.zeros(1, 5, 4)]), r"first sizes.*got \[1, 5, 4"),
        ((_X3, [_W], [None], "mul(col0)", [torch.zeros(3, 1, 4)]), r"first sizes.*got \[3, 1, 4"),
        ((_X, [_W], [None], "mul(row0)", [_COL[:2]]), r"operand row0 must be \[2, 1\].*unsqueeze"),
        ((_X, [_W], [None], "add(mat0)", [_COL]), r"operand mat0 must be \[2, 4\].*expand"),
        ((_X, [_W], [None], "add(mat0)", [_MAT.half()]), r"\(torch.float32\) or write mat0:f16"),
        ((_X, [_W], [None], "mul(mat0:bool)", [_MAT]), "the epilogue reads torch.bool"),
        ((_X, [_W], [None], "add(mat0)", []), r"takes 1 operand\(s\), got 0"),
        ((_X, [_W], [None], "add(mat0)", [_MAT.to("meta")]), "mat0 is on meta and x on cpu"),
        ((_X, [_W], [None], "mul($0)", [_MAT]), r"\$0 must have one element"),
        ((_X, [_W], [None], "gelo", []), "unknown operation 'gelo'"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        gemm(*given)
    with pytest.raises(ValueError, match="numerics must be 'accurate' or 'bitwise'"):
        gemm(_X, [_W], [None], "gelu", [], numerics="exact")


@pytest.mark.parametrize(
    ("m", "k", "n", "numerics"),
    list(itertools.product((0, 3), (0, 5), (0, 4), arguments.NUMERICS)),
)
def test_empty(m: int, k: int, n: int, numerics: str) -> None:
    x, ws, bs = problem(1, torch.float32, (m,), max(k, 1), n)
    x, ws = x[:, :k], [w[:, :k] for w in ws]
    mat = torch.randn(m, n)
    out, sums = gemm(x, ws, bs, "v0 = add(mat0); v0, v0 col_sum", [mat], numerics=numerics)
    torch.testing.assert_close(out, F.linear(x, ws[0], bs[0]) + mat)
    torch.testing.assert_close(sums, out.sum(0))


def test_the_kernels_numbers_of_dtypes_are_the_programs() -> None:
    """The order of gemm.h's DType, which kernels/plan/problem.py writes down again."""
    from fusepass.kernels.plan import problem as codes

    assert [codes.ir_dtype(c) for c in range(4)] == [DType.F32, DType.F16, DType.BF16, DType.F64]
