"""GELU by erf and by tanh, and the gradients of both: rows of the table, and their device texts."""

from __future__ import annotations

from typing import Any

from .primitives import gated_f32, polynomial
from .row import FACTOR_FLUSHED, Row, torch_op

# gelu(v) = max(v, 0) - |v| Phi(-|v|): no cancellation in the negative tail, where 1 + erf(v /
# sqrt(2)) loses everything. With h = v/2, max(v, 0) is h + |h|, which makes -inf NaN, as in torch,
# and the product uses a finite |v|, which keeps +inf. For 11 bits 2 Phi(-|v|) = 2^P(|h|), P a
# minimax polynomial without constant term, good to 6.5e-6 down to v = -6.25; it falls ever faster
# beyond, so the power is 0 there. For 8 bits, with t = |v|/7.7 up to 1, |v| Phi(-|v|) = t 2^Q(t),
# to 2^-12.3; beyond, it stays 5.3e-14. A saturating product is cheaper than a minimum beside the
# tensor cores.
_P = (-2.298724721185863e-4, 3.888772102072835e-3, -2.9549483209848404e-2, 1.356414556503296e-1,
      -4.3113672733306885e-1, -1.8341631889343262, -2.30242919921875)  # fmt: skip
_Q_BF16 = (2.99494696, -12.2216311, 21.4191971, -21.7762833, -27.6414795, -8.83689022,
           1.94458628)  # fmt: skip
_GELU_FLOOR_BF16 = 2.0**-44
# gelu(v) = h + S(h^2) on |v| <= 2, S the even part, without constant term: no power. To 9e-6, and
# for 8 bits with one term less, 8.3e-5.
_S = (-1.4608859084546566e-2, 9.013959765434265e-2, -2.862320840358734e-1, 6.324054598808289e-1,
      -1.0629267926567918, 1.5957221984863281)  # fmt: skip
_S_BF16 = (4.507050990806431e-2, -0.2341319567452646, 0.6048424609651729, -1.0565176255640187,
           1.5952401132536724)  # fmt: skip
# float32: Phi(-t) = 2^(P(t) - 1), t = |v|, to 2^-26.9; beyond 5.5, where all is less, P falls ever
# faster. On |v| <= 2, v/2 + v^2 Q(v^2), to 2^-28.7 of v. The rest is rounding, and the power's.
_P_F32 = (-2.8411648145265644e-06, 3.94543276343029e-05, -0.0001865559897851199,
          -0.0001359951711492613, 0.007062140386551619, -0.05249525234103203,
          -0.45920851826667786, -1.1511051654815674)  # fmt: skip
_Q_F32 = (-1.6453334694688238e-08, 5.186277576285647e-07, -8.936764061218128e-06,
          1.1439841182436794e-04, -1.1861043749377131e-03, 9.972781874239445e-03,
          -6.649015843868256e-02, 3.989422619342804e-01)  # fmt: skip


def _gelu(half: str, positive: str = "{half} + fabsf({half})", *, bf16: bool = False) -> str:
    """The polynomial is cut, which makes the parts about as long."""
    before = ["h = 0.5f * a"] if half == "h" else []
    power, end = ["p = exp2_approx(p)"], [f"w = {positive.format(half=half)}", "fmaf(-t, p, w)"]
    if bf16:
        scale = "0.12987013161182404f" if half == "h" else "0.2597402632236481f"
        before.append(f"t = saturate(fabsf(a) * {scale})")
        first, second, *rest = polynomial(_Q_BF16, "t")
        return "\n".join((*before, first, second, "cut", *rest, "cut", *power, *end))
    first, *rest = polynomial(_P, "t")
    before += [f"t = fabsf({half})", "t = fminf(t, 3.0e38f)"]
    if positive == _OF_PRODUCT:  # for which three consumers have no registers
        return "\n".join((*before, "cut", first, *rest, "p = p * t", *power, "cut", *end))
    return "\n".join((*before, first, "cut", *rest, "p = p * t", "cut", *power, *end))


# Of float32, max(v, 0) is a difference: a product c z, its half and the sum of both would be NaN
# otherwise than c z (below).
_GELU_F32 = "\n".join(
    (
        "t = fabsf(a)",
        "t = fminf(t, 3.0e38f)",
        "cut",
        *polynomial((*_P_F32, -1.0), "t"),
        "p = exp2_approx(p)",
        "cut",
        "w = fminf(a, 0.0f)",
        "w = a - w",
        "fmaf(-t, p, w)",
    )
)
_GELU_WITHIN_2_F32 = "\n".join(
    ("t = a * a", "h = 0.5f * a", "cut", *polynomial(_Q_F32, "t"), "cut", "fmaf(t, p, h)")
)


def _gelu_within_2(half: str, coefficients: tuple[float, ...]) -> str:
    before = ["h = 0.5f * a"] if half == "h" else []
    square, power = f"t = {half} * {half}", polynomial(coefficients, "t")
    return "\n".join((*before, square, "cut", *power, "cut", f"fmaf(t, p, {half})"))


# ptxas computes c z and its half as one FMUL.D2, which does not overflow where c z does: max(v, 0)
# must come from v itself for -inf to become NaN.
_OF_PRODUCT = "a - fminf(a, 0.0f)"

# gelu'(v) = Phi(v) + v phi(v) is r(|v|) for negative v, else 1 - r(|v|): no cancellation in the
# negative tail. r's zero t0 = 0.75179152469... is divided by: r(t) = (c - k t) 2^R(t), where c/k is
# t0 to 1.2e-12, so that values next to it keep their digits, and R a minimax polynomial: of degree
# 9 on [0, 7] (2^-18.6), for 8 bits of degree 7 on [0, 8.75] (2^-12.5). It falls ever faster beyond
# its range, so the power is 0 there; an infinite v makes the product NaN, which is torch's.
_R = (-6.25598204e-08, 2.45158185e-06, -4.26245715e-05, 4.37493494e-04, -2.99014221e-03,
      1.46521758e-02, -5.44585772e-02, -5.60979486e-01, -3.8310957e-01,
      -5.88297844e-01)  # fmt: skip
_R_BF16 = (-1.65513825e-06, 6.07324473e-05, -9.36571916e-04, 7.98936654e-03, -4.21970114e-02,
           -5.72352052e-01, -3.79039615e-01, -5.88537157e-01)  # fmt: skip


def _gelu_derivative(coefficients: tuple[float, ...]) -> str:
    return "\n".join(
        (
            "t = fabsf(a)",
            *polynomial(coefficients, "t"),
            "cut",
            "p = exp2_approx(p)",
            "u = fmaf(-0.999923586845398f, t, 0.7517340779304504f)",
            "cut",
            "p = p * u",
            "n = 1.0f - p",
            "a > 0.0f ? n : p",
        )
    )


# v/2 (1 + tanh(u)) = v / (1 + exp(-2u)), u = sqrt(2/pi) (v + 0.044715 v^3): torch's formula without
# its cancellation.
_GELU_TANH = """
p = a * a
p = fmaf(p, -0.10294324110680834f, -2.302208198144325f)
p = p * a
p = exp2_approx(p)
cut
p = p + 1.0f
cut
p = reciprocal_approx(p)
a * p
"""

_GELU_TANH_F32 = gated_f32(
    "x = t * t", "x = fmaf(x, -0.10294324110680834f, -2.302208198144325f)", "x = x * t"
)


# Its derivative, with s = 1 / (1 + e), e = exp(-2u): s + s v e s 2u'. e stays finite, for e s not
# to be NaN; an infinite v is, and one whose square is infinite, as torch's own in float32. The sum
# cancels at its zero, -0.7525, as torch's does, too.
_GELU_TANH_DERIVATIVE = """
w = a * a
cut
x = fmaf(w, -0.10294324110680834f, -2.302208198144325f)
x = x * a
x = fminf(x, 127.5f)
x = exp2_approx(x)
d = fmaf(w, 0.21406444881780073f, 1.5957691216057308f)
cut
n = x + 1.0f
n = reciprocal_approx(n)
x = x * n
x = x * d
x = x * a
"""
_CANCELLED = 2.0**-21


def _gelu_derivative_of(a: Any) -> Any:
    import torch

    one = torch.ones((), dtype=a.dtype, device=a.device)
    ones = torch.where(a == a, one, one)  # of a's shape, which no trace keeps
    return torch.ops.aten.gelu_backward(ones, a)


_ROOT, _CUBIC = 0.7978845608028654, 0.044715


def _gelu_tanh_derivative_of(a: Any) -> Any:
    """As torch's decomposition has it; its kernels' tanh is 1 elsewhere, which infinities tell."""
    square = a * a
    t = (_ROOT * (a + _CUBIC * (square * a))).tanh()
    inner = _ROOT * (1 + 3 * _CUBIC * square)
    return 0.5 * a * (1 - t * t) * inner + 0.5 * (1 + t)


def _gelu_tanh_gradient(a: Any, b: Any) -> Any:
    """What autograd makes of tanh GELU written by hand, ``b`` the gradient of its result.

    A sum of products, not a product with the derivative: NaN, where they are of both infinities.
    """
    square = a * a
    t = (_ROOT * (a + _CUBIC * (square * a))).tanh()
    inner = 0.5 * a * b * (1 - t * t) * _ROOT
    return inner + inner * _CUBIC * (3 * square) + 0.5 * (b * (t + 1))


def _gelu_half(a: Any) -> Any:
    import torch

    return torch.nn.functional.gelu(2 * a)


GELU_FAMILY = (
    Row("gelu", "v", torch_op("nn.functional.gelu"),
        exact="a * T(0.5) * (T(1) + erf(a * T(0.70710678118654752440)))",
        expansion="mul(0.7071067811865476) erf add(1.0) mul(z) mul(0.5)",
        fast=_gelu("h"), fast_bf16=_gelu("h", bf16=True), fast_f32=_GELU_F32,
        floor=3e-14, floor_bf16=_GELU_FLOOR_BF16),
    Row("gelu_tanh", "v", torch_op("nn.functional.gelu", approximate="tanh"),
        exact="""
inner = T(1.12837916709551257390 * 1.41421356237309504880 * 0.5) * (a + T(0.044715) * (a * a * a))
T(0.5) * a * (T(1) + tanh(inner))
""",
        expansion="square mul(0.044715) mul(z) add(z) mul(0.7978845608028654) tanh add(1.0) mul(z) "
                  "mul(0.5)",
        fast=_GELU_TANH, fast_f32=_GELU_TANH_F32, floor=FACTOR_FLUSHED),
    Row("gelu_derivative", "v", _gelu_derivative_of,
        exact="""
c = T(0.5) * (T(1) + erf(a * T(0.70710678118654752440)))
p = exp(a * a * T(-0.5)) * T(0.39894228040143267794)
c + a * p
""",
        expansion="v0 = mul(0.7071067811865476) erf add(1.0) mul(0.5); "
                  "square mul(-0.5) exp mul(0.3989422804014327) mul(z) add(v0)",
        fast=_gelu_derivative(_R), fast_bf16=_gelu_derivative(_R_BF16),
        floor=1e-10, floor_bf16=1e-16),
    Row("gelu_tanh_derivative", "v", _gelu_tanh_derivative_of,
        exact="""
w = a * a
t = tanh(T(1.12837916709551257390 * 1.41421356237309504880 * 0.5) * (a + T(0.044715) * (w * a)))
d = T(1.12837916709551257390 * 1.41421356237309504880 * 0.5) * (T(1) + T(3 * 0.044715) * w)
T(0.5) * (T(1) + t) + T(0.5) * a * (T(1) - t * t) * d
""",
        expansion="v0 = square; v1 = v0 mul(z) mul(0.044715) add(z) mul(0.7978845608028654) tanh; "
                  "v2 = v0 mul(0.134145) add(1.0) mul(0.7978845608028654); "
                  "v3 = v1 add(1.0) mul(0.5); "
                  "v1 square rsub(1.0) mul(z) mul(0.5) mul(v2) add(v3)",
        fast=_GELU_TANH_DERIVATIVE + "fmaf(n, x, n)", floor=_CANCELLED),
    Row("gelu_tanh_gradient", "vv", _gelu_tanh_gradient,
        exact="""
w = a * a
t = tanh(T(1.12837916709551257390 * 1.41421356237309504880 * 0.5) * (a + T(0.044715) * (w * a)))
g = T(0.5) * a * b * (T(1) - t * t) * T(1.12837916709551257390 * 1.41421356237309504880 * 0.5)
g * T(0.044715) * (T(3) * w) + g + T(0.5) * (b * (t + T(1)))
""",
        expansion="v0 = square; v1 = v0 mul(z) mul(0.044715) add(z) mul(0.7978845608028654) tanh; "
                  "v2 = v1 square sub(1.0, _); v3 = v0 mul(3.0); "
                  "v4 = v1 add(1.0) mul($0) mul(0.5); "
                  "v5 = mul(0.5) mul($0) mul(v2) mul(0.7978845608028654); "
                  "v5 mul(0.044715) mul(v3) add(v5, _) add(v4)",
        fast=_GELU_TANH_DERIVATIVE + "n = b * n\nfmaf(n, x, n)", floor=_CANCELLED),
    Row("gelu_of_product", "v", torch_op("nn.functional.gelu"), expansion="gelu", lowered=True,
        fast=_gelu("h", _OF_PRODUCT), fast_bf16=_gelu("h", _OF_PRODUCT, bf16=True),
        floor=3e-14, floor_bf16=_GELU_FLOOR_BF16),
    Row("gelu_within_2", "v", torch_op("nn.functional.gelu"), expansion="gelu", lowered=True,
        fast=_gelu_within_2("h", _S), fast_bf16=_gelu_within_2("h", _S_BF16),
        fast_f32=_GELU_WITHIN_2_F32),
    Row("gelu_half", "v", _gelu_half, expansion="mul(2.0) gelu", lowered=True,
        fast=_gelu("a"), fast_bf16=_gelu("a", bf16=True),
        floor=3e-14, floor_bf16=_GELU_FLOOR_BF16),
    Row("gelu_half_within_1", "v", _gelu_half, expansion="mul(2.0) gelu", lowered=True,
        fast=_gelu_within_2("a", _S), fast_bf16=_gelu_within_2("a", _S_BF16)),
)  # fmt: skip
