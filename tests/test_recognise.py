"""Programs to stages: by operator, by mathematics, with constants that stand for exact numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusepass.epilogue import Epilogue, Operand, StageCall
from fusepass.program import Program, Step, Symbolic, TensorConst, Value
from fusepass.recognise import recognise, snap
from fusepass.simplify import simplify

aten = torch.ops.aten
Z = Value(0)


def one(target: torch._ops.OpOverload, *args: object, **kwargs: object) -> object:
    return recognise((Step(target, args, tuple(kwargs.items())),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("step", "stage"),
    [
        ((aten.mul.Tensor, Z, 0.5), "mul(0.5)"),
        ((aten.mul.Tensor, 2, Z), "mul(2.0)"),
        ((aten.mul.Scalar, Z, True), "mul(1.0)"),
        ((aten.mul.Tensor, Z, TensorConst(0.25)), "mul(0.25)"),
        ((aten.mul.Tensor, Operand(0), Z), "mul($0)"),
        ((aten.div.Tensor, Z, 3), "div(3.0)"),
        ((aten.div.Tensor, Z, Operand(1)), "div($1)"),
        ((aten.neg.default, Z), "mul(-1.0)"),
        ((aten.relu.default, Z), "clamp(0.0, inf)"),
        ((aten.clamp_min.default, Z, -2), "clamp(-2.0, inf)"),
        ((aten.clamp_max.Tensor, Z, TensorConst(2.0)), "clamp(-inf, 2.0)"),
        ((aten.maximum.default, TensorConst(1.0), Z), "clamp(1.0, inf)"),
        ((aten.minimum.default, Z, Operand(0)), "clamp(-inf, $0)"),
        ((aten.clamp.default, Z, -1, 1), "clamp(-1.0, 1.0)"),
        ((aten.clamp.default, Z, None, 1), "clamp(-inf, 1.0)"),
        ((aten.hardtanh.default, Z), "clamp(-1.0, 1.0)"),
        ((aten.hardtanh.default, Z, 0, 6), "clamp(0.0, 6.0)"),
        ((aten.gelu.default, Z), "gelu"),
    ],
)
def test_one_operator(step: tuple, stage: str) -> None:
    assert str(one(*step)) == stage


def test_keywords() -> None:
    assert str(one(aten.clamp.default, Z, max=3)) == "clamp(-inf, 3.0)"
    assert str(one(aten.gelu.default, Z, approximate="tanh")) == "gelu_tanh"
    assert str(one(aten.gelu.default, Z, approximate="none")) == "gelu"


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ((aten.mul.Tensor, Z, Z), "`mul` is not a stage"),
        ((aten.div.Tensor, 2, Z), "`div` is not a stage"),
        ((aten.mul.Tensor, Z, math.nan), "NaN"),
        ((aten.mul.Tensor, Z, 10**400), "`mul` is not a stage"),
        ((aten.mul.Tensor, Z, Symbolic("s0")), r"only known at run time (s0)"),
        ((aten.clamp_min.default, Z, math.nan), "NaN"),
        ((aten.sin.default, Z), "`sin` is not a stage"),
    ],
)
def test_what_one_operator_is_not(step: tuple, reason: str) -> None:
    found = one(*step)
    assert isinstance(found, str) and reason in found


def gelu(root: float, half: float = 0.5, one_: float = 1.0) -> Program:
    return (
        Step(aten.mul.Tensor, (Z, half)),
        Step(aten.mul.Tensor, (Z, root)),
        Step(aten.erf.default, (Value(2),)),
        Step(aten.add.Tensor, (Value(3), one_)),
        Step(aten.mul.Tensor, (Value(1), Value(4))),
    )


def test_constants_agree_to_the_precision_of_the_site() -> None:
    exact, nearly = 0.7071067811865476, 0.70710678
    assert recognise(gelu(exact), True) == recognise(gelu(nearly), False) == StageCall("gelu")
    assert recognise(gelu(math.nextafter(exact, 1)), True) == StageCall("gelu")
    assert isinstance(recognise(gelu(nearly), True), str)
    assert isinstance(recognise(gelu(0.7071), False), str)


@pytest.mark.parametrize(
    "program", [gelu(0.7071067811865476, half=0.5001), gelu(0.7071067811865476, one_=0.999)]
)
def test_nearly_gelu_is_not(program: Program) -> None:
    found = recognise(program)
    assert isinstance(found, str) and "gelu is 0.5*z*erf(0.707107*z) + 0.5*z" in found


def test_a_run_time_scalar_inside_a_formula_is_no_stage() -> None:
    program = (*gelu(1.0)[:1], Step(aten.mul.Tensor, (Z, Operand(0))), *gelu(1.0)[2:])
    assert "only known at run time" in str(recognise(program))


def test_alpha_of_add_counts() -> None:
    steps = list(gelu(0.7071067811865476))
    steps[3] = Step(aten.add.Tensor, (Value(3), 0.5), (("alpha", 2),))
    assert recognise(tuple(steps)) == StageCall("gelu")


@given(st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_snapping_changes_a_number_by_less_than_its_precision(number: float, double: bool) -> None:
    exact = snap(number, double)
    bound = 2 * math.ulp(number) if double else max(2.0**-23 * abs(number), 5e-324)
    assert abs(float(exact) - number) <= bound


@pytest.mark.parametrize(
    ("number", "exact"),
    [(0.1, "1/10"), (-0.5, "-1/2"), (0.044715, "8943/200000"), (0.7978845608, "sqrt(2)/sqrt(pi)"),
     (1.4142135, "sqrt(2)"), (3.0, "3"), (0.0, "0"), (-0.70710678, "-sqrt(2)/2")],
)  # fmt: skip
def test_what_a_number_stands_for(number: float, exact: str) -> None:
    assert str(snap(number, False)) == exact


# --- canonical stages ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "accurate", "bitwise"),
    [
        ("div(2)", "mul(0.5)", "mul(0.5)"),
        ("div(3)", "div(3)", "div(3)"),
        ("div(0)", "div(0)", "div(0)"),
        ("div(inf)", "div(inf)", "div(inf)"),
        ("div(1e-39)", "div(1e-39)", "div(1e-39)"),
        ("div($0)", "div($0)", "div($0)"),
        ("mul(2) mul(3)", "mul(6)", "mul(2) mul(3)"),
        ("mul(2) mul(0.25)", "mul(2) mul(0.25)", "mul(2) mul(0.25)"),
        ("mul(2) mul(-1) mul(0.25)", "mul(-2) mul(0.25)", "mul(2) mul(-1) mul(0.25)"),
        ("mul(1e30) mul(1e30)", "mul(1e30) mul(1e30)", "mul(1e30) mul(1e30)"),
        ("mul(1e-30) mul(1e-30)", "mul(1e-30) mul(1e-30)", "mul(1e-30) mul(1e-30)"),
        ("mul($0) mul(2)", "mul($0) mul(2)", "mul($0) mul(2)"),
        ("clamp(-1, inf) clamp(-inf, 1)", "clamp(-1, 1)", "clamp(-1, 1)"),
        ("clamp(2, inf) clamp(-inf, 1)", "clamp(2, 1)", "clamp(2, 1)"),
        ("clamp(-inf, 1) clamp(-1, inf)", "clamp(-1, 1)", "clamp(-1, 1)"),
        ("clamp(-inf, 1) clamp(2, inf)", "clamp(-inf, 1) clamp(2, inf)",
         "clamp(-inf, 1) clamp(2, inf)"),
        ("clamp($0, inf) clamp(-inf, $1)", "clamp($0, $1)", "clamp($0, $1)"),
        ("clamp(-inf, $1) clamp($0, inf)", "clamp(-inf, $1) clamp($0, inf)",
         "clamp(-inf, $1) clamp($0, inf)"),
        ("clamp(0, 1) clamp(-inf, 0.5)", "clamp(0, 1) clamp(-inf, 0.5)",
         "clamp(0, 1) clamp(-inf, 0.5)"),
    ],
)  # fmt: skip
def test_simplify(written: str, accurate: str, bitwise: str) -> None:
    stages = Epilogue.parse(written).stages
    assert simplify(stages, torch.float32, bitwise=False) == Epilogue.parse(accurate).stages
    assert simplify(stages, torch.float32, bitwise=True) == Epilogue.parse(bitwise).stages


@pytest.mark.parametrize(
    ("dtype", "written", "simple"),
    [
        (torch.bfloat16, "div(3)", "mul(0.3333333333333333)"),
        (torch.float16, "div(-0.7)", "mul(-1.4285714285714286)"),
        (torch.float64, "div(3)", "div(3)"),
        (torch.float64, "div(-0.125)", "mul(-8)"),
        # The reciprocal is a subnormal of float32, which holds it exactly; a GPU might flush it.
        (torch.float32, f"div({2.0**127})", f"div({2.0**127})"),
        (torch.float64, f"div({2.0**127})", f"mul({2.0**-127})"),
        (torch.bfloat16, "mul(0.1) mul(0.3)", "mul(0.03)"),
        (torch.float32, "mul(0.1) mul(0.3)", "mul(0.1) mul(0.3)"),
        (torch.float64, "mul(0.1) mul(0.3)", "mul(0.1) mul(0.3)"),
        (torch.float32, "mul(0.1) mul(0.5)", "mul(0.05)"),
        (torch.float64, "mul(1.1) mul(-2)", "mul(-2.2)"),
        # Each has 13 bits, the product 25: one more than float32.
        (torch.float32, "mul(4097) mul(4099)", "mul(4097) mul(4099)"),
        (torch.float64, "mul(4097) mul(4099)", "mul(16793603)"),
        (torch.float32, "mul(1e39) mul(2)", "mul(1e39) mul(2)"),
        (torch.float64, "mul(inf) mul(2)", "mul(inf) mul(2)"),
    ],
)
def test_what_float32_and_float64_would_show_is_kept(
    dtype: torch.dtype, written: str, simple: str
) -> None:
    stages = Epilogue.parse(written).stages
    assert simplify(stages, dtype, bitwise=False) == Epilogue.parse(simple).stages


def test_float64_folds_where_float32_would_overflow() -> None:
    stages = (StageCall("mul", (2.0**100,)), StageCall("mul", (2.0**100,)))
    assert simplify(stages, torch.float64, bitwise=False) == (StageCall("mul", (2.0**200,)),)
    assert simplify(stages, torch.float32, bitwise=False) == stages


_number = st.floats(-1e3, 1e3).filter(lambda v: abs(v) > 1e-3)
_stage = st.one_of(
    _number.map(lambda c: StageCall("mul", (c,))),
    _number.map(lambda c: StageCall("div", (c,))),
    st.tuples(_number, _number).map(lambda b: StageCall("clamp", b)),
    _number.map(lambda c: StageCall("clamp", (-math.inf, c))),
    _number.map(lambda c: StageCall("clamp", (c, math.inf))),
)


@given(st.lists(_stage, min_size=1, max_size=6), st.booleans())
def test_simplifying_keeps_the_function(stages: list[StageCall], bitwise: bool) -> None:
    z = torch.cat([torch.linspace(-2e3, 2e3, 4001).double(), torch.tensor([math.inf, -math.inf])])
    simple = simplify(stages, torch.float64, bitwise=bitwise)
    found, expected = (Epilogue(tuple(s)).reference(z) for s in (simple, stages))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert len(simple) <= len(stages)


@pytest.mark.parametrize("target", [aten.clamp_min.default, aten.clamp_max.default])
def test_zeros_of_two_signs_are_remembered_apart(target: torch._ops.OpOverload) -> None:
    for zero in (0.0, -0.0, 0.0):
        stage = one(target, Z, zero)
        assert isinstance(stage, StageCall)
        bound = stage.scalars[0 if target is aten.clamp_min.default else 1]
        assert math.copysign(1, float(str(bound))) == math.copysign(1, zero)
