"""The table's macros: composites with an operator of eager's or a better device function.

Adding an activation is one row here; its expansion is what a graph's operators are compared with.
"""

from __future__ import annotations

from typing import Any

from .gelu import GELU_FAMILY
from .primitives import EXPM1, LOG2E, gated_f32, polynomial
from .row import FACTOR_FLUSHED, Row, torch_op


def _silu(scale: str) -> str:
    """a / (1 + exp(-scale a)), the argument of 2^x already times log2(e)."""
    return f"""
x = a * -{scale}
x = exp2_approx(x)
cut
x = 1.0f + x
x = reciprocal_approx(x)
cut
a * x
"""


# With x = exp(a): tanh(log1p(x)) = n / (n + 2), n = x (x + 2). Beyond 20 it is 1.
_MISH = f"""
x = fminf(a, 20.0f)
x = x * {LOG2E}
x = exp2_approx(x)
cut
q = x + 2.0f
n = x * q
q = n + 2.0f
q = reciprocal_approx(q)
cut
n = n * q
a * n
"""

# log1p(x) / x on [0, 1], to 2^-16.8.
_LOG1P = (-0.023869144960430317, 0.10122226787143758, -0.21004867504696367, 0.32520667487961386,
          -0.4993613640311668, 0.9999915981531771)  # fmt: skip


def _log1p_of_exp(end: str) -> str:
    """With p = log1p(exp(-|a|)): ``end``."""
    before = ("x = fabsf(a)", f"x = x * -{LOG2E}", "x = exp2_approx(x)")
    return "\n".join((*before, "cut", *polynomial(_LOG1P, "x"), "cut", end))


_ELU = EXPM1.replace("(a", "(m").replace(", a,", ", m,").replace("* a", "* m")


def _elu(end: str) -> str:
    """With ``e`` = expm1(min(a, 0)): ``end``."""
    lines = _ELU.strip().splitlines()
    return "\n".join(("m = min_nan(a, 0.0f)", *lines[:-1], f"e = {lines[-1]}", end))


def _celu(a: Any, alpha: Any) -> Any:
    import torch

    return torch.nn.functional.celu(a, alpha)


def _elu_reference(a: Any, alpha: Any) -> Any:
    import torch

    return torch.nn.functional.elu(a, alpha)


def _prelu(a: Any, weight: Any) -> Any:
    import torch

    return torch.where(a > 0, a, weight * a)


_SIGMOID_FAMILY = (
    Row("silu", "v", torch_op("nn.functional.silu"), "a / (T(1) + exp(-a))", "sigmoid mul(z)",
        fast=_silu(LOG2E), fast_f32=gated_f32(f"x = t * -{LOG2E}"), floor=FACTOR_FLUSHED),
    Row("quick_gelu", "v", lambda a: a * (1.702 * a).sigmoid(),
        "a * div_rn(T(1), T(1) + exp(T(-1.702) * a))", "mul(1.702) sigmoid mul(z)",
        fast=_silu("2.4554669595930156f"), floor=FACTOR_FLUSHED),
    Row("mish", "v", torch_op("nn.functional.mish"), "a * tanh(log1p(exp(a)))",
        "exp log1p tanh mul(z)", fast=_MISH, floor=FACTOR_FLUSHED),
    Row("softplus", "vvv", torch_op("nn.functional.softplus"), """
x = a * b
x > c ? a : log1p(exp(x)) / b
""", "v0 = mul($0); v1 = v0 gt($1); v0 exp log1p div($0) where(v1, z, _)"),
    Row("softplus_1", "v", torch_op("nn.functional.softplus"), expansion="softplus(1.0, 20.0)",
        fast=_log1p_of_exp("q = max_nan(a, 0.0f)\nfmaf(p, x, q)"), lowered=True),
    Row("logsigmoid", "v", torch_op("nn.functional.logsigmoid"),
        "min_nan(a, T(0)) - log1p(exp(-fabs(a)))",
        "v0 = clamp(-inf, 0.0); abs neg exp log1p sub(v0, _)",
        fast=_log1p_of_exp("q = min_nan(a, 0.0f)\nfmaf(-p, x, q)")),
    Row("softcap", "vv", lambda a, c: (a / c).tanh() * c, "c_ = tanh(div_rn(a, b))\nmul_rn(c_, b)",
        "div($0) tanh mul($0)"),
)  # fmt: skip

_PIECEWISE = (
    Row("elu", "vv", _elu_reference, "a > T(0) ? a : expm1(a) * b",
        "v0 = gt(0.0); expm1 mul($0) where(v0, z, _)", fast=_elu("e = e * b\na > 0.0f ? a : e")),
    Row("selu", "v", torch_op("nn.functional.selu"),
        "a > T(0) ? a * T(1.0507009873554804934193349852946) : "
        "expm1(a) * T(1.0507009873554804934193349852946 * 1.6732632423543772848170429916717)",
        "v0 = gt(0.0); v1 = mul(1.0507009873554805); "
        "expm1 mul(1.7580993408473766) where(v0, v1, _)",
        fast=_elu("""e = e * 1.7580993408473766f
n = a * 1.0507009873554805f
a > 0.0f ? n : e""")),
    Row("celu", "vv", _celu, "a > T(0) ? a : expm1(a * div_rn(T(1), b)) * b",
        "v0 = gt(0.0); div($0) expm1 mul($0) where(v0, z, _)"),
    Row("leaky_relu", "vv", torch_op("nn.functional.leaky_relu"), "a > T(0) ? a : mul_rn(a, b)",
        "v0 = gt(0.0); mul($0) where(v0, z, _)", fast="x = a * b\na > 0.0f ? a : x"),
    Row("prelu", "vv", _prelu, "a > T(0) ? a : mul_rn(b, a)",
        "v0 = gt(0.0); mul($0) where(v0, z, _)", fast="x = a * b\na > 0.0f ? a : x"),
    Row("hardswish", "v", torch_op("nn.functional.hardswish"),
        "a * min_nan(max_nan(a + T(3), T(0)), T(6)) * T(0.16666666666666666667)",
        "add(3.0) clamp(0.0, 6.0) mul(z) div(6.0)",
        fast="x = a + 3.0f\nx = saturate(x * 0.16666667f)\na * x"),
    Row("hardsigmoid", "v", torch_op("nn.functional.hardsigmoid"),
        "min_nan(max_nan(a + T(3), T(0)), T(6)) * T(0.16666666666666666667)",
        "add(3.0) clamp(0.0, 6.0) div(6.0)",
        fast="x = a + 3.0f\nx = max_nan(x, 0.0f)\nx = min_nan(x, 6.0f)\nx * 0.16666667f"),
    Row("softsign", "v", torch_op("nn.functional.softsign"), "div_rn(a, add_rn(fabs(a), T(1)))",
        "abs add(1.0) div(z, _)"),
    Row("relu_squared", "v", lambda a: a.relu().square(), "x = max_nan(a, T(0))\nmul_rn(x, x)",
        "clamp(0.0, inf) square", fast="x = max_nan(a, 0.0f)\nx * x"),
)  # fmt: skip

MACROS = (*GELU_FAMILY, *_SIGMOID_FAMILY, *_PIECEWISE)
