"""The op on a GPU by way of the framework's GEMM and the pointwise kernel."""

from __future__ import annotations

import pytest
import torch
from epilogues import (
    GELUS,
    eager,
    error,
    random_epilogue,
    random_operands,
    without_cancellation,
)
from hybrid_problem import problem
from torch import Tensor

import fusepass.op.linear
from fusepass import Epilogue

F = torch.nn.functional
linear = torch.ops.fusepass.linear
linear_with_preact = torch.ops.fusepass.linear_with_preact
SEED_CHAIN = "mul(0.5) clamp(-2.0, 2.0) gelu"


@pytest.mark.parametrize("dtype", fusepass.op.arguments.DTYPES)
@pytest.mark.parametrize("gelu", GELUS)
def test_accurate_is_no_worse_than_eager(dtype: torch.dtype, gelu: str) -> None:
    x, w, b = problem(dtype)
    z = F.linear(x, w, b)
    for seed in range(50):
        epilogue = random_epilogue(seed, gelu, operands=seed % 2 == 1)
        operands = random_operands(epilogue, seed, dtype=dtype, device="cuda")
        exact = epilogue.reference(z.double(), *(v.double() for v in operands))
        out, kept = linear_with_preact(x, w, b, str(epilogue), operands)
        assert torch.equal(kept, z)
        assert torch.equal(out, linear(x, w, b, str(epilogue), operands))
        assert torch.equal(out.isnan(), exact.isnan())
        worst = error(eager(z, epilogue, operands), exact)
        assert error(out, exact) <= worst * 1.001 + 1e-15, f"{epilogue}: eager {worst}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "text", ["gelu", "gelu_tanh", SEED_CHAIN, "mul(-3.0) gelu", "clamp(0.0, inf)"]
)
def test_every_16_bit_value(dtype: torch.dtype, text: str) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32, device="cuda").to(torch.int16)
    x, one = bits.view(dtype)[:, None], torch.ones(1, 1, dtype=dtype, device="cuda")
    z = F.linear(x, one)
    exact = without_cancellation(Epilogue.parse(text), z.double())
    got = linear(x, one, None, text, [])
    # A product beyond float32 is infinite in float32, and GELU of -inf NaN, as in eager.
    in_float32 = Epilogue.parse(text).reference(z.float())
    assert torch.equal(got.isnan(), in_float32.isnan())
    finite = exact.isfinite() & in_float32.isfinite() & (exact.abs() <= torch.finfo(dtype).max)
    infinite = ~finite & ~in_float32.isnan()
    assert torch.equal(got[infinite], in_float32[infinite].to(dtype))
    got, exact = got[finite].double(), exact[finite]
    info = torch.finfo(dtype)
    ulp = torch.exp2(exact.abs().clamp_min(info.smallest_normal).log2().floor()) * info.eps
    # docs/numerics.md has the bounds.
    relative = 2.0**-12 if dtype == torch.bfloat16 else 2.0**-15
    beyond = (got - exact).abs() - ulp / 2 - (relative * exact.abs()).clamp_min(2.0**-44)
    assert float(beyond.max()) <= 0


@pytest.mark.parametrize("dtype", fusepass.op.arguments.DTYPES)
def test_special_values(dtype: torch.dtype) -> None:
    inf, nan, tiny = float("inf"), float("nan"), torch.finfo(dtype).smallest_normal
    values = [nan, inf, -inf, 0.0, -0.0, tiny, -tiny, tiny / 4, 1.0, -3.0]
    z = torch.tensor(values, dtype=dtype, device="cuda")[:, None]
    one = torch.ones(1, 1, dtype=dtype, device="cuda")
    for text in ("mul(0.5)", "clamp(-2.0, 2.0)", "clamp(-inf, inf)", "clamp(3.0, 1.0)", "gelu",
                 "clamp(-inf, 1.0)", "clamp(0.0, inf)", "gelu_tanh", SEED_CHAIN):  # fmt: skip
        expected = eager(F.linear(z, one), Epilogue.parse(text), [])
        torch.testing.assert_close(linear(z, one, None, text, []), expected, equal_nan=True)
    nan_operand = torch.tensor(nan, device="cuda", dtype=dtype)
    for text in ("clamp($0, 1.0)", "clamp(0.0, $0)", "mul($0)"):
        assert linear(z, one, None, text, [nan_operand]).isnan().all()


@pytest.mark.parametrize("dtype", fusepass.op.arguments.DTYPES)
def test_every_element_is_written(dtype: torch.dtype) -> None:
    for n in (1, 7, 4096, 8192, 12289):
        x, w, b = problem(dtype, 3, 5, n)
        for _ in range(3):  # what the allocator hands out next is full of NaN
            poison = [
                torch.full((3, n), float("nan"), device="cuda", dtype=dtype) for _ in range(4)
            ]
            del poison
            out, z = linear_with_preact(x, w, b, SEED_CHAIN, [])
            assert out.isfinite().all() and z.isfinite().all()
            assert torch.equal(out, linear(x, w, b, SEED_CHAIN, []))


@pytest.mark.parametrize("numerics", fusepass.op.arguments.NUMERICS)
def test_more_than_2_to_the_31_elements(numerics: str) -> None:
    x = torch.randn(70000, 8, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(32768, 8, device="cuda", dtype=torch.bfloat16)
    out = linear(x, w, None, "mul(3.0)", [], numerics=numerics)
    for rows in (slice(0, 64), slice(65504, 65600), slice(69936, 70000)):
        expected = F.linear(x[rows].float(), w.float()) * 3
        torch.testing.assert_close(out[rows].float(), expected, rtol=2e-2, atol=1e-2)


def test_empty() -> None:
    for m, k, n in ((0, 5, 4), (3, 0, 4), (3, 5, 0), (0, 0, 0)):
        x, w, b = problem(torch.float32, m, k, n)
        torch.testing.assert_close(
            linear(x, w, b, "mul(2.0) gelu", []), F.gelu(F.linear(x, w, b) * 2)
        )


# --- the op as torch sees it --------------------------------------------------------------------


@pytest.mark.parametrize("numerics", fusepass.op.arguments.NUMERICS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(numerics: str, requires_grad: bool) -> None:
    x, w, b = (t.requires_grad_(requires_grad) for t in problem(torch.float32, 6, 5, 4))
    operand = torch.tensor(0.7, requires_grad=requires_grad, device="cuda")
    for op in (linear.default, linear_with_preact.default):
        for args in ((x, w, b, "mul($0) gelu", [operand]), (x.view(2, 3, 5), w, None, "gelu", [])):
            torch.library.opcheck(op, args, {"numerics": numerics})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients(dtype: torch.dtype) -> None:
    leaves = [t.requires_grad_() for t in problem(dtype)]
    c = torch.tensor(0.7, device="cuda", dtype=dtype, requires_grad=True)
    text = "mul($0) clamp(-2.0, 2.0) gelu"
    direction = torch.randn(133, 147, device="cuda").to(dtype)
    got = torch.autograd.grad(linear(*leaves, text, [c]), [*leaves, c], direction)
    wide = [t.detach().double().requires_grad_() for t in (*leaves, c)]
    results = {}
    for name, tensors in (("eager", [*leaves, c]), ("exact", wide)):
        out = eager(F.linear(*tensors[:3]), Epilogue.parse(text), [tensors[3]])
        results[name] = torch.autograd.grad(out, tensors, direction.to(out.dtype))
    for g, e, exact in zip(got, results["eager"], results["exact"], strict=True):
        assert (
            error(g, exact) <= 1.5 * error(e, exact) + torch.finfo(dtype).eps
        )  # one step is chance


def test_functorch() -> None:
    x, w, b = problem(torch.float64, 3, 5, 4)

    def loss(w: Tensor) -> Tensor:
        return linear(x, w, b, "gelu", []).sum()

    expected = torch.func.grad(lambda w: F.gelu(F.linear(x, w, b)).sum())(w)
    torch.testing.assert_close(torch.func.grad(loss)(w), expected)
    torch.testing.assert_close(torch.func.jvp(loss, (w,), (w,))[1], (expected * w).sum())
    each = torch.vmap(lambda x: linear(x, w, b, "gelu", []))(x)
    torch.testing.assert_close(each, F.gelu(F.linear(x, w, b)))


def test_autocast() -> None:
    x, w, b = problem(torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        got = linear(x, w, b, "gelu", [], numerics="bitwise")
        assert torch.equal(got, F.gelu(F.linear(x, w, b))) and got.dtype == torch.bfloat16


def test_errors_name_the_argument() -> None:
    x, w, b = problem(torch.float32)
    for arguments, message in (
        ((x, w.t(), b, "gelu", []), "weight must be"),
        ((x, w.cpu(), b, "gelu", []), "weight is on cpu"),
        ((x, w, b.half(), "gelu", []), "cast bias"),
        ((x, w, b, "gelo", []), "unknown operation 'gelo'"),
        ((x, w, b, "mul($0)", []), "takes 1 operand"),
        ((x, w, b, "mul($0)", [x]), "one element"),
    ):
        with pytest.raises(ValueError, match=message):
            linear(*arguments)
    with pytest.raises(ValueError, match="numerics must be"):
        linear(x, w, b, "gelu", [], numerics="exact")
