"""Composites become macros, whatever their spelling; what is nearly one does not."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_programs import WRITTEN, programs, run, short_number, tensors

from fusepass.ir import DType, Epilogue
from fusepass.ir import recognise as recognition
from fusepass.ir.mathematics import snap
from fusepass.ir.recognise import recognise
from fusepass.ir.table import ROWS

ROOT, TWO_OVER_PI = 0.7071067811865476, 0.7978845608028654
MACROS = [name for name, row in ROWS.items() if row.is_macro and not row.lowered]


@pytest.mark.parametrize("name", MACROS)
def test_every_macro_is_found_in_its_expansion(name: str) -> None:
    parameters = {2: "(0.25)", 3: "(0.5, 20.0)"}.get(ROWS[name].arity, "")
    text = ROWS[name].expansion.replace("$0", "0.25" if ROWS[name].arity == 2 else "0.5")
    text = text.replace("$1", "20.0")
    wanted = {"prelu": "leaky_relu"}.get(name, name) + parameters
    for before, behind in (("", ""), ("mul(mat0) ", ""), ("", " add(mat0)")):
        if before and ";" in text:
            continue
        if before:
            text_, expected = f"v0 = mul(mat0); v0 {text}".replace("(z", "(v0"), before + wanted
        else:
            text_, expected = text + behind, wanted + behind
        assert str(recognise(Epilogue.parse(text_), DType.F32)) == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"v0 = mul(0.5); mul({ROOT}) erf add(1.0) mul(v0)", "gelu"),
        (f"v0 = mul({ROOT}) erf add(1.0) mul(0.5); mul(v0)", "gelu"),
        ("div(1.4142135623730951) erf add(1.0) mul(z) mul(0.5)", "gelu"),
        (f"v0 = mul(-0.5); mul({-ROOT}) erf rsub(1.0) mul(v0) neg", "gelu"),
        (f"mul({-ROOT}) erfc mul(z) mul(0.5)", "gelu"),
        (f"pow(3.0) mul(0.044715) add(z) mul({TWO_OVER_PI}) tanh add(1.0) mul(z) mul(0.5)",
         "gelu_tanh"),
        (f"v0 = mul(z) mul(0.044715) add(1.0) mul(z); v0 mul({2 * TWO_OVER_PI}) sigmoid mul(z)",
         "gelu_tanh"),
        ("neg exp add(1.0) reciprocal mul(z)", "silu"),
        ("v0 = neg exp add(1.0); div(v0)", "silu"),
        ("mul(-1.702) exp add(1.0) div(z, _)", "quick_gelu"),
        ("softplus(1.0, 20.0) tanh mul(z)", "mish"),
        # As torch takes its activations apart: parameters of 1 and two-sided clamps are not there.
        ("v0 = exp log1p; gt(20.0) where(z, v0)", "softplus(1.0, 20.0)"),
        ("v0 = exp log1p; gt(20.0) where(z, v0) tanh mul(z)", "mish"),
        ("v0 = expm1; gt(0.0) where(z, v0)", "elu(1.0)"),
        ("add(3.0) maximum(0.0) minimum(6.0) mul(z) div(6.0)", "hardswish"),
        ("add(3.0) clamp(0.0, inf) clamp(-inf, 6.0) div(6.0)", "hardsigmoid"),
        ("abs add(1.0) reciprocal mul(z)", "softsign"),
        ("v0 = gt(0.0); mul(col0) where(v0, z, _)", "prelu(col0)"),
        ("v0 = div(30.0) tanh; mul(2.0) mul(v0)", "v0 = div(30.0) tanh; mul(2.0) mul(v0)"),
        ("div(30.0) tanh mul(30.0)", "softcap(30.0)"),
        ("sigmoid mul(z) mul(z1)", "silu mul(z1)"),
        ("v0 = mul(col0) add(mat0); v1 = v0 sigmoid; v0 mul(v1), v0",
         "v0 = mul(col0) add(mat0); v0 silu, v0"),
        ("v0 = sigmoid; v0 mul(z), v0", "silu, sigmoid"),
        ("sigmoid mul(2.0) add(z)", "sigmoid mul(2.0) add(z)"),
        ("sigmoid mul(z)~bf16", "sigmoid mul(z)~bf16"),
        ("clamp(0.0, inf) mul(2.0) square", "clamp(0.0, inf) mul(2.0) square"),
    ],
)  # fmt: skip
def test_spellings(text: str, found: str) -> None:
    for dtype in (DType.BF16, DType.F16):
        assert str(recognise(Epilogue.parse(text), dtype)) == found


@pytest.mark.parametrize(
    ("root", "half", "one", "short", "double"),
    [
        (ROOT, 0.5, 1.0, True, True),
        (0.70710678, 0.5, 1.0, True, False),
        (math.nextafter(ROOT, 1), 0.5, 1.0, True, True),
        (0.7071, 0.5, 1.0, False, False),
        (ROOT, 0.5001, 1.0, False, False),
        (ROOT, 0.5, 0.999, False, False),
    ],
)
def test_constants_agree_to_the_precision_of_the_site(
    root: float, half: float, one: float, short: bool, double: bool
) -> None:
    epilogue = Epilogue.parse(f"mul({root}) erf add({one}) mul(z) mul({half})")
    for dtype, wanted in ((DType.BF16, short), (DType.F32, short), (DType.F64, double)):
        assert (str(recognise(epilogue, dtype)) == "gelu") == wanted


@pytest.mark.parametrize("far", [1e8, 1e3])
def test_what_is_a_macro_on_paper_only_is_none(far: float) -> None:
    text = f"v0 = add({far}) sub({far}); v0 sigmoid mul(z)"
    assert "silu" not in str(recognise(Epilogue.parse(text), DType.BF16))
    assert "silu" not in str(recognise(Epilogue.parse(text), DType.F16))
    small = Epilogue.parse("v0 = add(0.5) sub(0.5); v0 sigmoid mul(z)")
    assert str(recognise(small, DType.BF16)) == "silu"


@given(
    programs(
        tuple(op for op in WRITTEN if op != "celu"), rounded=False, number=short_number, plain=True
    )
)
@settings(max_examples=100)
def test_recognition_keeps_the_function(epilogue: Epilogue) -> None:
    given_ = tensors(epilogue, 4, 16, torch.float64)
    wanted, got = run(epilogue, given_), run(recognise(epilogue, DType.F64), given_)
    pairs = zip(got, wanted, strict=True) if isinstance(got, tuple) else [(got, wanted)]
    for mine, theirs in pairs:
        near = torch.isclose(mine, theirs, rtol=1e-9, atol=1e-12, equal_nan=True)
        # A comparison of what rounds differently, or a function at its pole, may go either way.
        assert near.float().mean() > 0.7, str(epilogue)


@pytest.mark.parametrize(
    ("number", "exact"),
    [(0.1, "1/10"), (-0.5, "-1/2"), (0.044715, "8943/200000"), (0.7978845608, "sqrt(2)/sqrt(pi)"),
     (1.4142135, "sqrt(2)"), (3.0, "3"), (0.0, "0"), (-0.70710678, "-sqrt(2)/2")],
)  # fmt: skip
def test_what_a_number_stands_for(number: float, exact: str) -> None:
    assert str(snap(number, False)) == exact


@given(st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_snapping_changes_a_number_by_less_than_its_precision(number: float, double: bool) -> None:
    exact = snap(number, double)
    bound = 2 * math.ulp(number) if double else max(2.0**-23 * abs(number), 5e-324)
    assert abs(float(exact) - number) <= bound


def _long(steps: int) -> Epilogue:
    """Of 2 ``steps`` operations, none of them of two values: each is a function of each before."""
    return Epilogue.parse(" ".join(f"sub({0.5 + step}) abs" for step in range(steps)))


def test_the_cost_is_linear_in_the_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in programs that are made to be looked at, not timed."""
    made: list[Epilogue] = []
    alone = recognition._alone
    monkeypatch.setattr(recognition, "_alone", lambda *part: made.append(alone(*part)) or made[-1])

    def number_made(program: Epilogue) -> int:
        made.clear()
        assert recognise(program, DType.F32) == program
        return len(made)

    cold = []
    for steps in (16, 20, 24, 28):
        recognition._composite.cache_clear()
        cold.append(number_made(_long(steps)))
    more = [b - a for a, b in itertools.pairwise(cold)]
    assert more[0] == more[1] == more[2] <= 8 * (recognition.MAX_STEPS + 1)
    # What is known of a beginning is not asked again: a site's results are tried one by one.
    assert number_made(_long(28)) <= 56
    assert number_made(_long(29)) <= 58 + 2 * recognition.MAX_STEPS


@pytest.mark.timeout(60)
def test_digits_that_sympy_would_count_for_minutes_are_not_asked_for() -> None:
    """The erf of 1000 is 1 but for what begins half a million digits behind the point."""
    derivative_of_gelu = (
        "v0 = sub(1000.0); v1 = v0 square mul(-0.5) exp mul(0.3989422804014327) mul(v0, _); "
        "v0 mul(0.7071067811865476) erf add(1.0) mul(0.5) add(v1)"
    )
    found = recognise(Epilogue.parse(derivative_of_gelu), DType.F16)
    assert str(found) == "sub(1000.0) gelu_derivative"
