"""What the fuzzer counts as right."""

from __future__ import annotations

import pytest
import torch

from .exact import Exact
from .oracle import compare, results
from .programs import Program

GELUS = (
    "F.gelu(x)",
    "F.gelu(x, approximate='tanh')",
    "x * torch.special.ndtr(x)",
    "0.5 * x * (1 + torch.erf(x * 0.7071067811865476))",
    "x * 0.5 * (torch.erf(x / 2 ** 0.5) + 1)",
    "0.5 * x * (1 + torch.tanh(0.7978845608028654 * (x + 0.044715 * x ** 3)))",
)


def _program(value: str) -> Program:
    return Program([f"t0 = {value}"], ["t0"])


def _problem(program: Program, found: torch.Tensor, *args: torch.Tensor) -> str | None:
    return compare(program.function(), [found], list(args), False, "accurate")


@pytest.mark.parametrize("gelu", GELUS)
def test_exact_values_have_a_tail(gelu: str) -> None:
    x = torch.linspace(-12, 12, 101, dtype=torch.float64)
    function = _program(gelu).function()
    (cancelled,) = function(x, *[None] * 5)
    with Exact():
        (found,) = function(x, *[None] * 5)
    assert bool((cancelled[x < -9] == 0).all()) and bool((found[x < -9] < 0).all())
    torch.testing.assert_close(found, cancelled, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("sign", [-1.0, 0.0])
def test_a_gelu_that_is_tiny_and_one_that_is_zero_are_both_right(sign: float) -> None:
    x = torch.full((2, 3, 8), -9.0)
    args = [x, *torch.zeros(2, 8, 8), *torch.zeros(2, 8), torch.tensor(1.0)]
    program = _program("F.gelu(x).sign()")
    assert _problem(program, torch.full_like(x, sign), *args) is None
    assert _problem(program, torch.ones_like(x), *args) is not None


def test_a_sum_that_cancels_may_be_off_by_what_its_terms_round_to() -> None:
    program = _program("F.linear(x, w) / s * s")
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 8), (8, 8), (8, 8), (8,), (8,), ())
    args = [torch.randn(s, generator=generator).half() for s in shapes]
    function = program.function()
    exact = results(function, [a.double() for a in args], True)
    found = [v.half() for v in exact]
    assert float(exact[-1].abs()) < 1e-9  # the gradient of s
    for off, right in ((0.0, True), (0.01, True), (10.0, False)):
        found[-1] = torch.tensor(off, dtype=torch.float16)
        problem = compare(function, found, args, True, "accurate")
        assert (problem is None) == right, off


@pytest.mark.parametrize(("off", "right"), [(2.0**-12, True), (2.0**-7, False)])
def test_a_value_computed_twice_may_be_rounded_twice(off: float, right: bool) -> None:
    lines = ["t0 = F.linear(x, w)", "t1 = torch.exp(-t0.abs())", "t2 = F.relu6(t1) - t1"]
    program = Program(lines, ["t2"])
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 8), (8, 8), (8, 8), (8,), (8,), ())
    args = [torch.randn(s, generator=generator).half() for s in shapes]
    args[0] /= 8  # t1 is near 1, whose numbers are 2^-11 and 2^-10 apart
    problem = compare(
        program.function(), [torch.full((2, 3, 8), off).half()], args, False, "accurate"
    )
    assert (problem is None) == right


def test_what_eager_rounds_between_operators_need_not_be_rounded_but_a_cast_is_a_cast() -> None:
    program = _program("(x.bfloat16() + w[:6].reshape(2, 3, 8).bfloat16()).float() * 2")
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 8), (8, 8), (8, 8), (8,), (8,), ())
    args = [torch.randn(s, generator=generator) for s in shapes]
    x, w = args[0], args[1][:6].reshape(2, 3, 8)
    assert _problem(program, (x.bfloat16().float() + w.bfloat16().float()) * 2, *args) is None
    cast = _program("x.bfloat16().float() * 2")
    assert _problem(cast, x.bfloat16().float() * 2, *args) is None
    assert _problem(cast, x * 2, *args) is not None
