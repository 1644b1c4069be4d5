"""The table's macros: composites with an operator of eager's or a better device function.

Adding an activation is one row here; its expansion is what a graph's operators are compared with.
"""

from __future__ import annotations

from typing import Any

from .primitives import EXPM1, LOG2E
from .row import FLUSHED, Row, torch_op

# v times a factor that is 0 where float32 holds it only as a subnormal, with |v| up to 128.
_FACTOR_FLUSHED = 128 * FLUSHED

# --- gelu -----------------------------------------------------------------------------------------
#
# gelu(v) = max(v, 0) - |v| Phi(-|v|), with 2 Phi(-|v|) = 2^P(|v|/2) and P a minimax polynomial: no
# cancellation in the negative tail, where 1 + erf(v / sqrt(2)) loses everything. With h = v/2,
# max(v, 0) is h + |h|, which makes -inf NaN, as in torch, and the product uses a finite |h|, which
# keeps +inf. P falls ever faster beyond its range, so the power is 0 there. For 11 bits it has no
# constant term and is good to 6.5e-6 down to v = -6.25, for 8 bits to 2^-12 down to v = -10.5.
_P = (-2.298724721185863e-4, 3.888772102072835e-3, -2.9549483209848404e-2, 1.356414556503296e-1,
      -4.3113672733306885e-1, -1.8341631889343262, -2.30242919921875)  # fmt: skip
_P_BF16 = (-8.373830116151839e-5, 1.9396954841640255e-3, -1.92224306654695e-2, 0.10825032204305,
           -0.39356429301866197, -1.8588355163388346, -2.2963280867339315,
           -2.48019692528468e-4)  # fmt: skip
# gelu(v) = h + S(h^2) on |v| <= 2, S the even part, without constant term: no power. To 9e-6, and
# for 8 bits with one term less, 8.3e-5.
_S = (-1.4608859084546566e-2, 9.013959765434265e-2, -2.862320840358734e-1, 6.324054598808289e-1,
      -1.0629267926567918, 1.5957221984863281)  # fmt: skip
_S_BF16 = (4.507050990806431e-2, -0.2341319567452646, 0.6048424609651729, -1.0565176255640187,
           1.5952401132536724)  # fmt: skip


def _polynomial(coefficients: tuple[float, ...], variable: str) -> list[str]:
    """Horner's scheme from the highest power on, into ``p``."""
    first, second, *rest = (f"{c!r}f" for c in coefficients)
    lines = [f"p = fmaf({first}, {variable}, {second})"]
    return lines + [f"p = fmaf(p, {variable}, {c})" for c in rest]


def _gelu(half: str, power: list[str], positive: str = "{half} + fabsf({half})") -> str:
    before = ["h = 0.5f * a"] if half == "h" else []
    return "\n".join(
        (
            *before,
            f"t = fabsf({half})",
            "t = fminf(t, 3.0e38f)",
            "cut",
            *power,
            "p = exp2_approx(p)",
            "cut",
            f"w = {positive.format(half=half)}",
            "fmaf(-t, p, w)",
        )
    )


def _gelu_within_2(half: str, coefficients: tuple[float, ...]) -> str:
    before = ["h = 0.5f * a"] if half == "h" else []
    square, power = f"t = {half} * {half}", _polynomial(coefficients, "t")
    return "\n".join((*before, square, "cut", *power, "cut", f"fmaf(t, p, {half})"))


# ptxas computes c z and its half as one FMUL.D2, which does not overflow where c z does: max(v, 0)
# must come from v itself for -inf to become NaN.
_OF_PRODUCT = "a - fminf(a, 0.0f)"

_POWER, _POWER_BF16 = [*_polynomial(_P, "t"), "p = p * t"], _polynomial(_P_BF16, "t")

# gelu'(v) = Phi(v) + v phi(v) is r(|v|) for negative v, else 1 - r(|v|), with
# r(t) = (t0 - t) exp(-t^2/2) R(t): one power, and no cancellation at t0 = 0.7517915..., its zero. R
# is a polynomial on [0, 6.2] (2^-15.6), for 8 bits on [0, 10.5] (2^-12.4); beyond, r is too small
# to matter and R keeps its last value. t0 - t is taken in two steps; an infinite v makes it NaN,
# which is torch's.
_R = (-1.948871215518011e-07, 6.391908755176701e-06, -9.159059845842421e-05,
      0.000759374292101711, -0.004090838134288788, 0.0153981177136302, -0.04316404461860657,
      0.09591592103242874, -0.1763770878314972, 0.665070116519928)  # fmt: skip
_R_BF16 = (-1.4285527427659872e-08, 7.582715966236719e-07, -1.730926669551991e-05,
           0.00022315852402243763, -0.001799858408048749, 0.009560937993228436,
           -0.03469044342637062, 0.08967415243387222, -0.1745852380990982,
           0.6649840474128723)  # fmt: skip


def _gelu_derivative(reach: str, coefficients: tuple[float, ...]) -> str:
    return "\n".join(
        (
            "t = fabsf(a)",
            f"q = fminf(t, {reach})",
            "e = a * a",
            "e = e * -0.7213475204444817f",
            "e = exp2_approx(e)",
            "cut",
            *_polynomial(coefficients, "q"),
            "cut",
            "u = 0.7517915368080139f - t",
            "u = u - 1.2114449e-08f",
            "p = p * u",
            "p = p * e",
            "n = 1.0f - p",
            "a > 0.0f ? n : p",
        )
    )


# v/2 (1 + tanh(u)) = v / (1 + exp(-2u)), u = sqrt(2/pi) (v + 0.044715 v^3): torch's formula without
# its cancellation.
_GELU_TANH = """
p = a * a
p = fmaf(p, -0.10294324110680834f, -2.302208198144325f)
cut
p = p * a
p = exp2_approx(p)
cut
p = p + 1.0f
p = reciprocal_approx(p)
a * p
"""


def _gelu_derivative_of(a: Any) -> Any:
    import torch

    one = torch.ones((), dtype=a.dtype, device=a.device)
    ones = torch.where(a == a, one, one)  # of a's shape, which no trace keeps
    return torch.ops.aten.gelu_backward(ones, a)


def _gelu_half(a: Any) -> Any:
    import torch

    return torch.nn.functional.gelu(2 * a)


# --- the rest -------------------------------------------------------------------------------------


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
    return "\n".join((*before, "cut", *_polynomial(_LOG1P, "x"), "cut", end))


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


_GELU_FAMILY = (
    Row("gelu", "v", torch_op("nn.functional.gelu"),
        exact="a * T(0.5) * (T(1) + erf(a * T(0.70710678118654752440)))",
        expansion="mul(0.7071067811865476) erf add(1.0) mul(z) mul(0.5)",
        fast=_gelu("h", _POWER), fast_bf16=_gelu("h", _POWER_BF16),
        floor=3e-14, floor_bf16=5e-25),
    Row("gelu_tanh", "v", torch_op("nn.functional.gelu", approximate="tanh"),
        exact="""
inner = T(1.12837916709551257390 * 1.41421356237309504880 * 0.5) * (a + T(0.044715) * (a * a * a))
T(0.5) * a * (T(1) + tanh(inner))
""",
        expansion="square mul(0.044715) mul(z) add(z) mul(0.7978845608028654) tanh add(1.0) mul(z) "
                  "mul(0.5)",
        fast=_GELU_TANH, floor=_FACTOR_FLUSHED),
    Row("gelu_derivative", "v", _gelu_derivative_of,
        exact="""
c = T(0.5) * (T(1) + erf(a * T(0.70710678118654752440)))
p = exp(a * a * T(-0.5)) * T(0.39894228040143267794)
c + a * p
""",
        expansion="v0 = mul(0.7071067811865476) erf add(1.0) mul(0.5); "
                  "square mul(-0.5) exp mul(0.3989422804014327) mul(z) add(v0)",
        fast=_gelu_derivative("6.2f", _R), fast_bf16=_gelu_derivative("10.5f", _R_BF16),
        floor=1e-10, floor_bf16=5e-25),
    Row("gelu_of_product", "v", torch_op("nn.functional.gelu"), expansion="gelu", lowered=True,
        fast=_gelu("h", _POWER, _OF_PRODUCT), fast_bf16=_gelu("h", _POWER_BF16, _OF_PRODUCT),
        floor=3e-14, floor_bf16=5e-25),
    Row("gelu_within_2", "v", torch_op("nn.functional.gelu"), expansion="gelu", lowered=True,
        fast=_gelu_within_2("h", _S), fast_bf16=_gelu_within_2("h", _S_BF16)),
    Row("gelu_half", "v", _gelu_half, expansion="mul(2.0) gelu", lowered=True,
        fast=_gelu("a", _POWER), fast_bf16=_gelu("a", _POWER_BF16),
        floor=3e-14, floor_bf16=5e-25),
    Row("gelu_half_within_1", "v", _gelu_half, expansion="mul(2.0) gelu", lowered=True,
        fast=_gelu_within_2("a", _S), fast_bf16=_gelu_within_2("a", _S_BF16)),
)  # fmt: skip

_SIGMOID_FAMILY = (
    Row("silu", "v", torch_op("nn.functional.silu"), "a / (T(1) + exp(-a))", "sigmoid mul(z)",
        fast=_silu(LOG2E), floor=_FACTOR_FLUSHED),
    Row("quick_gelu", "v", lambda a: a * (1.702 * a).sigmoid(),
        "a * div_rn(T(1), T(1) + exp(T(-1.702) * a))", "mul(1.702) sigmoid mul(z)",
        fast=_silu("2.4554669595930156f"), floor=_FACTOR_FLUSHED),
    Row("mish", "v", torch_op("nn.functional.mish"), "a * tanh(log1p(exp(a)))",
        "exp log1p tanh mul(z)", fast=_MISH, floor=_FACTOR_FLUSHED),
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

MACROS = (*_GELU_FAMILY, *_SIGMOID_FAMILY, *_PIECEWISE)
