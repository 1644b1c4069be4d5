"""The general op on a GPU: streams, CUDA graphs, devices, gradients, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from epilogues import error
from gemm_cases import CASES, operands, problem
from torch import Tensor

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import Epilogue
from fusepass.op import arguments

F = torch.nn.functional
gemm = torch.ops.fusepass.gemm

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
