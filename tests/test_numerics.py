"""The sentences of docs/numerics.md on accurate numerics, as they stand, where the op is torch's.

tests/ir/test_ir_device.py has those of the kernels' functions, tests/gpu/ those of the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from epilogues import CHANCE, eager, error, random_epilogue, steps, without_cancellation
from graphs import fuse
from torch import Tensor

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass import Epilogue
from fusepass.op import lowering

linear = torch.ops.fusepass.linear
linear_with_preact = torch.ops.fusepass.linear_with_preact

SHORT = [torch.bfloat16, torch.float16]
# What a function's value may be off by, relatively.
FUNCTION = {torch.bfloat16: 2.0**-12, torch.float16: 2.0**-15}
INF, NAN = math.inf, math.nan


def apply(z: Tensor, text: str, *operands: Tensor, numerics: str = "accurate") -> Tensor:
    """The op of a pre-activation that is ``z``, 1-d, exactly."""
    one = torch.ones(1, 1, dtype=z.dtype)
    out, preact = linear_with_preact(z[:, None], one, None, text, list(operands), numerics=numerics)
    torch.testing.assert_close(preact[:, 0], z, rtol=0, atol=0, equal_nan=True)
    return out[:, 0]


def every(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def normal(dtype: torch.dtype) -> Tensor:
    """Every number that a CPU which flushes subnormals keeps."""
    z = every(dtype)
    return z[z.isfinite() & ((z.abs() >= torch.finfo(dtype).smallest_normal) | (z == 0))]


def unit(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of ``dtype``'s numbers around ``exact``, float64."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(exact)[1] - 1
    smallest = int(math.log2(info.smallest_normal))
    return torch.ldexp(torch.full_like(exact, info.eps), exponent.clamp(min=smallest))


def check_16_bits(z: Tensor, text: str, got: Tensor) -> None:
    exact = without_cancellation(Epilogue.parse(text), z.double())
    off = (got.double() - exact).abs()
    off[exact.abs() > torch.finfo(z.dtype).max] = 0.0
    function = FUNCTION[z.dtype] * exact.abs()
    if "gelu" not in text:
        function *= 2.0**-7  # float32's own
    elif z.dtype is torch.bfloat16:
        function = function.clamp(min=2.0**-44)
    assert bool((off <= unit(exact, z.dtype) / 2 + function).all())


def check_float32(name: str, function: Callable[[Tensor], Tensor]) -> None:
    z = torch.cat([torch.linspace(-15, 15, 50_001), torch.linspace(-0.1, 0.1, 10_001)])
    exact = without_cancellation(Epilogue.parse(name), z.double())
    off = (function(z).double() - exact).abs()
    assert bool((off <= 2.0**-21 * z.double().abs()).all())


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize(
    "text",
    ["gelu", "gelu_tanh", "mul(0.3)", "div(3.0)", "div(0.7)", "mul(0.3) clamp(-2.1, 1.9) gelu",
     "mul(0.5) mul(0.3)", "clamp(0.1, inf) mul(3.0)", "clamp(-0.1, 0.1) mul(3.0)", "mul(-1.0) gelu",
     "mul(-0.9) gelu_tanh div(0.7)", "gelu mul(0.3)"],
)  # fmt: skip
def test_16_bit_values_are_rounded_once(dtype: torch.dtype, text: str) -> None:
    """Every value: within 2^-12 or 2^-15 of the exact one, relatively, and then rounded."""
    z = normal(dtype)
    check_16_bits(z, text, apply(z, text))


@pytest.mark.parametrize("text", ["gelu", "gelu_tanh"])
def test_code_that_inductor_generates(text: str) -> None:
    lowering.register()

    @torch.compile(dynamic=False)
    def generated(z: Tensor) -> Tensor:
        return linear(z[:, None], z.new_ones(1, 1), None, text, [])[:, 0]

    for dtype in SHORT:
        z = normal(dtype)
        check_16_bits(z, text, generated(z))
    check_float32(text, generated)
    special = torch.tensor([NAN, INF, -INF, 0.0, 3e38, -3e38]).repeat(20)
    expected = eager(special.double(), Epilogue.parse(text), []).float()
    torch.testing.assert_close(generated(special), expected, equal_nan=True)


@pytest.mark.parametrize("dtype", CHANCE)
@pytest.mark.parametrize("gelu", ["gelu", "gelu_tanh"])
def test_a_result_is_as_close_to_float64_as_eagers(dtype: torch.dtype, gelu: str) -> None:
    torch.manual_seed(0)
    x, w, b = (torch.randn(*s).to(dtype) for s in ((64, 48), (800, 48), (800,)))
    for seed in range(40):
        epilogue = random_epilogue(seed, gelu)
        z = torch.nn.functional.linear(x.double(), w.double(), b.double())
        exact = without_cancellation(epilogue, z)
        ours = linear(x, w, b, str(epilogue), [])
        theirs = eager(torch.nn.functional.linear(x, w, b), epilogue, [])
        assert error(ours, exact) <= error(theirs, exact) + CHANCE[dtype], str(epilogue)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "text", ["mul(0.3)", "div(3.0)", "div(0.7)", "clamp(-2.1, 1.9)", "mul(0.5)"]
)
def test_products_quotients_and_bounds_are_eagers(dtype: torch.dtype, text: str) -> None:
    torch.manual_seed(0)
    z = torch.randn(10_001, dtype=dtype) * torch.exp2(torch.randint(-140, 120, (10_001,)))
    assert torch.equal(apply(z, text), eager(z, Epilogue.parse(text), []))


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_float32_gelu(name: str) -> None:
    check_float32(name, lambda z: apply(z, name))


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_float64_gelu_is_eagers(name: str) -> None:
    z = torch.linspace(-40, 40, 50_001, dtype=torch.float64)
    assert torch.equal(apply(z, name), eager(z, Epilogue.parse(name), []))


@pytest.mark.parametrize("dtype", [*SHORT, torch.float32])
def test_the_far_tail_of_gelu_is_kept_where_eager_has_zero(dtype: torch.dtype) -> None:
    z = torch.linspace(-13, -5.6, 20_001).to(dtype)  # whose results float32 holds with all digits
    exact = without_cancellation(Epilogue.parse("gelu"), z.double())
    got = apply(z, "gelu")
    assert bool((torch.nn.functional.gelu(z) == 0).all())
    if dtype is torch.float32:
        torch.testing.assert_close(got.double(), exact, rtol=2.0**-15, atol=0)
    else:
        check_16_bits(z, "gelu", got)
    assert torch.equal(got.sign(), exact.to(dtype).sign())
    wide = z.double()[z < -8.4]
    assert bool((apply(wide, "gelu") == 0).all())


# --- infinities, NaN, overflow -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("text", ["gelu", "gelu_tanh", "mul(0.5) gelu", "gelu mul(0.5)",
                                  "clamp(-2.0, inf) gelu"])  # fmt: skip
@pytest.mark.parametrize("count", [1, 2, 7, 7000])
def test_special_values_are_those_of_float64(dtype: torch.dtype, text: str, count: int) -> None:
    """oneDNN's GELU of +inf, which is NaN, is not."""
    largest, one = torch.finfo(dtype).max, torch.ones(1, 1, dtype=dtype)
    z = torch.tensor([INF, NAN, -INF, 0.0, -0.0, largest, -largest], dtype=dtype)
    z = torch.nn.functional.linear(z.repeat(1000)[:count, None], one)
    exact = eager(z.double(), Epilogue.parse(text), []).to(dtype)
    got = linear(z, one, None, text, [])
    close = {"rtol": max(torch.finfo(dtype).eps, 1e-6), "atol": 0.0, "equal_nan": True}
    torch.testing.assert_close(got, exact, **close)
    assert torch.equal(got.signbit()[~got.isnan()], exact.signbit()[~got.isnan()])
    batched = torch.vmap(lambda w: linear(z, w, None, text, []))(one[None])
    torch.testing.assert_close(batched[0], exact, **close)


def test_no_stage_but_the_last_rounds_to_16_bits() -> None:
    z = torch.tensor([30000.0, 6e-8, 1.0], dtype=torch.float16)
    back = torch.tensor(0.125)
    assert torch.equal(apply(z, "mul(8.0) mul($0)", back), z)
    assert torch.equal(apply(z, "mul(0.125) mul(8.0)"), z)
    assert torch.equal(apply(z, "mul(0.125) mul($0)", torch.tensor(8.0)), z)
    assert torch.equal(apply(z, "div($0) mul(0.125)", back), z)


OUTSIDE = [
    (torch.float16, "clamp(-inf, 100000.0)"),
    (torch.float16, "clamp(-100000.0, 100000.0)"),
    (torch.float16, "clamp(100000.0, inf)"),
    (torch.float16, "clamp(-65510.0, 65510.0)"),  # which is rounded to 65504
    (torch.float16, "clamp(-100000.0, 100000.0) gelu"),
    (torch.bfloat16, "clamp(-3.4028234663852886e+38, 3.4028234663852886e+38)"),
    (torch.bfloat16, "clamp(-3.4028234663852886e+38, 3.4028234663852886e+38) gelu"),
    (torch.float32, "clamp(-inf, 1e+39)"),
    (torch.float32, "clamp(-1e+39, 3.4028235e+38)"),
    (torch.float32, "clamp(1e+39, inf) mul(0.5)"),
    (torch.float64, "clamp(-1.7976931348623157e+308, inf)"),
    (torch.float32, "mul(1e+39)"),
    (torch.bfloat16, "div(1e+39)"),
    (torch.float16, "mul(100000.0)"),
]


@pytest.mark.parametrize("numerics", ["accurate", "bitwise"])
@pytest.mark.parametrize(("dtype", "text"), OUTSIDE)
def test_numbers_that_the_dtype_does_not_have(dtype: torch.dtype, text: str, numerics: str) -> None:
    """They are what the dtype rounds them to."""
    epilogue, largest = Epilogue.parse(text), torch.finfo(dtype).max
    z = torch.tensor([NAN, INF, -INF, largest, -largest, 1.0, -1.0, 0.0], dtype=dtype)
    wide = torch.float64 if dtype in (torch.float32, torch.float64) else torch.float32
    expected = z.to(wide)
    for name, given in steps(epilogue):
        scalars = [torch.tensor(v, dtype=wide) for v in given]
        if dtype is torch.float32:
            scalars = [v.float().double() for v in scalars]
        if name == "clamp":
            expected = torch.minimum(torch.maximum(expected, scalars[0]), scalars[1])
        elif name == "gelu":
            expected = expected / 2 * torch.erfc(-expected / math.sqrt(2))
        else:
            expected = getattr(torch, name)(expected, scalars[0])
    expected = expected.to(dtype)
    results = [apply(z, text, numerics=numerics), epilogue.reference(z)]
    if "gelu" in text:  # eager's own GELU of +inf may be NaN
        results = results[:1] if numerics == "accurate" else []
    for result in results:
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_bounds_that_are_run_time_tensors(dtype: torch.dtype) -> None:
    z = torch.tensor([NAN, INF, -INF, 1.0, -1.0], dtype=dtype)
    bound = torch.tensor(1e39, dtype=torch.float64)
    for numerics in ("accurate", "bitwise"):
        got = apply(z, "clamp($0, $1)", -bound, bound, numerics=numerics)
        torch.testing.assert_close(got, z, rtol=0, atol=0, equal_nan=True)


FLT_MAX = torch.finfo(torch.float32).max
TAILS: dict[str, tuple[torch.dtype, Callable[[Tensor], Tensor]]] = {
    "minimum": (torch.float16, lambda z: torch.minimum(z, torch.tensor(1e5))),
    "clamp in float32": (torch.float16, lambda z: z.float().clamp(-1e5, 1e5).half()),
    "FLT_MAX": (torch.bfloat16, lambda z: z.float().clamp(-FLT_MAX, FLT_MAX).bfloat16()),
    "1e39": (torch.float32, lambda z: torch.minimum(z, torch.tensor(1e39, dtype=torch.float64))),
    "erf": (torch.float32, lambda z: z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))),
    "ndtr": (torch.float32, lambda z: z * torch.special.ndtr(z)),
    "transposed": (torch.float32, lambda z: torch.nn.functional.gelu(z.t()).t()),
    "after FLT_MAX": (
        torch.bfloat16,
        lambda z: torch.nn.functional.gelu(z.float().clamp(-FLT_MAX, FLT_MAX).bfloat16()),
    ),
}


@pytest.mark.parametrize("name", TAILS)
def test_infinities_and_large_bounds_in_a_graph(name: str) -> None:
    dtype, tail = TAILS[name]
    x = torch.tensor([NAN, INF, -INF, 0.0, 1.0, -1.0, 100.0], dtype=dtype)[:, None].repeat(9, 1)
    if name == "after FLT_MAX":  # -inf becomes a number, which eager rounds to -inf again
        x[x == -INF] = -3.0
    w = torch.ones(3, 1, dtype=dtype)
    with torch.no_grad():
        fused = fuse(lambda x: tail(torch.nn.functional.linear(x, w)))
        found = fused(x)
        with torch.backends.mkldnn.flags(enabled=False):  # to which GELU of +inf is NaN
            expected = tail(torch.nn.functional.linear(x, w))
    assert len(fused.epilogues) == 1
    torch.testing.assert_close(found, expected, equal_nan=True)
