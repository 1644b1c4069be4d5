"""The table's primitives: what a graph's pointwise operators are imported as, one to one.

An operation that cannot be cheaper for 16 bits than it is for 24 has no fast text of its own.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from .row import Row, torch_op

LOG2E = "1.4426950408889634f"

# expm1 loses its digits to the 1 near 0, where three terms of its series have 2^-20.
EXPM1 = f"""
x = exp2_approx(a * {LOG2E})
x = x - 1.0f
cut
q = fmaf(a, 0.16666667f, 0.5f)
q = fmaf(q, a, 1.0f)
q = q * a
cut
fabsf(a) < 0.03125f ? q : x
"""

# (1 - x) / (1 + x), x = exp(-2|a|); near 0, where 1 - x loses its digits, a - a^3/3.
TANH = """
m = fabsf(a)
x = m * -2.885390081777927f
x = exp2_approx(x)
cut
n = 1.0f - x
x = 1.0f + x
x = reciprocal_approx(x)
q = a * a
q = fmaf(q, -0.33333334f, 1.0f)
q = q * a
cut
n = n * x
n = copysignf(n, a)
m < 0.0625f ? q : n
"""


def gated_f32(*exponent: str) -> str:
    """a / (1 + 2^-e) in float32, e = -x for a > 0: max(a, 0) - |a| s, s = 2^x / (1 + 2^x).

    No sum overflows and s is at most 1/2, as its error is; its reciprocal is mended once.

    Args:
        exponent: statements that make x, not above 0, of t = |a|.
    """
    return "\n".join(
        (
            "t = fabsf(a)",
            "t = fminf(t, 3.0e38f)",
            *exponent,
            "x = exp2_approx(x)",
            "cut",
            "d = 1.0f + x",
            "r = reciprocal_approx(d)",
            "n = fmaf(-d, r, 1.0f)",
            "r = fmaf(r, n, r)",
            "x = x * r",
            "cut",
            "w = fminf(a, 0.0f)",
            "w = a - w",
            "fmaf(-t, x, w)",
        )
    )


def polynomial(coefficients: tuple[float, ...], variable: str) -> list[str]:
    """Horner's scheme from the highest power on, into ``p``."""
    first, second, *rest = (f"{c!r}f" for c in coefficients)
    lines = [f"p = fmaf({first}, {variable}, {second})"]
    return lines + [f"p = fmaf(p, {variable}, {c})" for c in rest]


def _scalar_first(function: Any) -> Any:
    """``function`` also where its first argument is a number and its second a tensor."""

    def call(a: Any, b: Any) -> Any:
        import torch

        if not isinstance(a, torch.Tensor):
            a = torch.as_tensor(a, dtype=b.dtype, device=b.device)
        return function(a, b)

    return call


def _both_tensors(name: str) -> Any:
    """torch's function of that name, which takes no numbers."""

    def call(a: Any, b: Any) -> Any:
        import torch

        if not isinstance(b, torch.Tensor):
            b = torch.as_tensor(b, dtype=a.dtype, device=a.device)
        return _scalar_first(getattr(torch, name))(a, b)

    return call


def bounds_in(z: Any, lo: Any, hi: Any) -> tuple[Any, Any]:
    """The bounds as ``z``'s dtype rounds them: torch.clamp takes no number beyond its range.

    It takes two numbers or two tensors, never one of each.
    """
    import torch

    if isinstance(lo, torch.Tensor) or isinstance(hi, torch.Tensor):
        lo, hi = (torch.as_tensor(v, dtype=z.dtype, device=z.device) for v in (lo, hi))
        return lo, hi
    return _within(lo, z.dtype), _within(hi, z.dtype)


def _within(bound: float, dtype: Any) -> float:
    """``bound``, or what ``dtype`` rounds it to where that is another order of magnitude."""
    import torch

    limits = torch.finfo(dtype)
    if abs(bound) <= limits.max or math.isinf(bound):
        return bound
    # Half a unit beyond the largest number lies what is rounded to infinity.
    beyond = math.ldexp(1 - limits.eps / 4, math.frexp(limits.max)[1])
    return math.copysign(limits.max if abs(bound) < beyond else math.inf, bound)


def _clamp(z: Any, lo: Any, hi: Any) -> Any:
    import torch

    return torch.clamp(z, *bounds_in(z, lo, hi))


_ARITHMETIC = (
    Row("add", "vv", operator.add, "add_rn(a, b)", fast="a + b", commutative=True),
    Row("sub", "vv", operator.sub, "sub_rn(a, b)", fast="a - b"),
    Row("rsub", "vv", lambda a, b: b - a, "sub_rn(b, a)", fast="b - a"),
    Row("mul", "vv", operator.mul, "mul_rn(a, b)", fast="a * b", commutative=True),
    Row("div", "vv", _scalar_first(torch_op("div")), "div_rn(a, b)", fast="divide_approx(a, b)"),
    Row("neg", "v", operator.neg, "-a"),
    Row("reciprocal", "v", torch_op("reciprocal"), "div_rn(T(1), a)",
        fast="divide_approx(1.0f, a)"),
    Row("square", "v", torch_op("square"), "mul_rn(a, a)", fast="a * a"),
    Row("pow", "vv", torch_op("pow"), "pow(a, b)"),
    Row("sqrt", "v", torch_op("sqrt"), "sqrt_rn(a)", fast="sqrt_approx(a)"),
    Row("rsqrt", "v", torch_op("rsqrt"), "rsqrt(a)", fast="rsqrt_approx(a)"),
    Row("abs", "v", torch_op("abs"), "fabs(a)"),
    Row("sign", "v", torch_op("sign"), "T(a > T(0)) - T(a < T(0))"),
    Row("to", "v", lambda a: a, "a"),
)  # fmt: skip

_FUNCTIONS = (
    Row("exp", "v", torch_op("exp"), "exp(a)", fast=f"x = a * {LOG2E}\nexp2_approx(x)"),
    Row("exp2", "v", torch_op("exp2"), "exp2(a)", fast="exp2_approx(a)"),
    Row("expm1", "v", torch_op("expm1"), "expm1(a)", fast=EXPM1),
    Row("log", "v", torch_op("log"), "log(a)"),
    Row("log1p", "v", torch_op("log1p"), "log1p(a)"),
    Row("erf", "v", torch_op("erf"), "erf(a)"),
    Row("erfc", "v", torch_op("erfc"), "erfc(a)"),
    Row("tanh", "v", torch_op("tanh"), "tanh(a)", fast=TANH),
    Row("sigmoid", "v", torch_op("sigmoid"), "div_rn(T(1), T(1) + exp(-a))", fast=f"""
x = a * -{LOG2E}
x = exp2_approx(x)
cut
x = 1.0f + x
cut
reciprocal_approx(x)
"""),
    Row("sin", "v", torch_op("sin"), "sin(a)"),
    Row("cos", "v", torch_op("cos"), "cos(a)"),
)  # fmt: skip

_ROUNDING = tuple(
    Row(name, "v", torch_op(name), f"{device}(a)")
    for name, device in (
        ("round", "rint"),
        ("floor", "floor"),
        ("ceil", "ceil"),
        ("trunc", "trunc"),
    )
)

# clamp is min(max(z, lo), hi) with NaN from any of the three; lo > hi gives hi.
_BOUNDS = (
    Row("maximum", "vv", _both_tensors("maximum"), "max_nan(a, b)", commutative=True),
    Row("minimum", "vv", _both_tensors("minimum"), "min_nan(a, b)", commutative=True),
    Row("clamp", "vvv", _clamp, "x = max_nan(a, b)\nmin_nan(x, c)"),
)

_CONDITIONS = (
    *(
        Row(name, "vv", _scalar_first(torch_op(name)), f"a {sign} b", result="b",
            commutative=name in ("eq", "ne"))
        for name, sign in (
            ("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="),
        )
    ),
    Row("logical_and", "bb", torch_op("logical_and"), "a && b", result="b", commutative=True),
    Row("logical_or", "bb", torch_op("logical_or"), "a || b", result="b", commutative=True),
    Row("logical_xor", "bb", torch_op("logical_xor"), "a != b", result="b", commutative=True),
    Row("logical_not", "b", torch_op("logical_not"), "!a", result="b"),
    Row("where", "bvv", torch_op("where"), "a ? b : c"),
)  # fmt: skip

PRIMITIVES = (*_ARITHMETIC, *_FUNCTIONS, *_ROUNDING, *_BOUNDS, *_CONDITIONS)
