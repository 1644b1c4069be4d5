"""Import: a region's operators, one to one, as operations of the table."""

from __future__ import annotations

import math

import pytest
import torch

from fusepass.ir import Input, Ref
from fusepass.match.importing import Importer
from fusepass.match.program import CAST, Program, Step, Symbolic, TensorConst, Value

aten = torch.ops.aten
Z, S0, S1 = Value(0), Input("$", 0), Input("$", 1)


def read(*steps: tuple) -> str:
    """The text of ``steps``, each a target, its arguments and, last, a dict of keywords."""
    program: Program = tuple(
        Step(target, tuple(a for a in args if not isinstance(a, dict)),
             tuple(item for a in args if isinstance(a, dict) for item in a.items()))
        for target, *args in steps
    )  # fmt: skip
    importer = Importer(program)
    value = importer.values[-1]
    if isinstance(value, str):
        return value
    assert isinstance(value, (Ref, Input))
    return str(importer.builder.finish(value))


@pytest.mark.parametrize(
    ("step", "operation"),
    [
        ((aten.mul.Tensor, Z, 0.5), "mul(0.5)"),
        ((aten.mul.Tensor, 2, Z), "mul(2.0, _)"),
        ((aten.mul.Scalar, Z, True), "mul(1.0)"),
        ((aten.mul.Tensor, Z, TensorConst(0.25)), "mul(0.25)"),
        ((aten.mul.Tensor, S0, Z), "mul($0, _)"),
        ((aten.mul.Tensor, Z, Z), "mul(z)"),
        ((aten.div.Tensor, Z, 3), "div(3.0)"),
        ((aten.div.Tensor, 2, Z), "div(2.0, _)"),
        ((aten.div.Tensor, Z, S1), "div($1)"),
        ((aten.add.Tensor, Z, 2), "add(2.0)"),
        ((aten.add.Tensor, Z, 2, {"alpha": 3}), "add(6.0)"),
        ((aten.add.Tensor, Z, S0, {"alpha": 3}), "$0 mul(3.0) add(z, _)"),
        ((aten.sub.Tensor, 1, Z), "sub(1.0, _)"),
        ((aten.sub.Tensor, Z, Z, {"alpha": 0.5}), "mul(0.5) sub(z, _)"),
        ((aten.rsub.Scalar, Z, 1), "sub(1.0, _)"),
        ((aten.neg.default, Z), "neg"),
        ((aten.relu.default, Z), "clamp(0.0, inf)"),
        ((aten.clamp_min.default, Z, -2), "clamp(-2.0, inf)"),
        ((aten.clamp_max.Tensor, Z, TensorConst(2.0)), "clamp(-inf, 2.0)"),
        ((aten.maximum.default, TensorConst(1.0), Z), "clamp(1.0, inf)"),
        ((aten.minimum.default, Z, S0), "clamp(-inf, $0)"),
        ((aten.clamp.default, Z, -1, 1), "clamp(-1.0, 1.0)"),
        ((aten.clamp.default, Z, None, 1), "clamp(-inf, 1.0)"),
        ((aten.clamp.default, Z, {"max": 3}), "clamp(-inf, 3.0)"),
        ((aten.hardtanh.default, Z), "clamp(-1.0, 1.0)"),
        ((aten.hardtanh.default, Z, 0, 6), "clamp(0.0, 6.0)"),
        ((aten.gelu.default, Z), "gelu"),
        ((aten.gelu.default, Z, {"approximate": "tanh"}), "gelu_tanh"),
        ((aten.gelu.default, Z, {"approximate": "none"}), "gelu"),
        ((aten.sin.default, Z), "sin"),
        ((aten.pow.Tensor_Scalar, Z, 3), "pow(3.0)"),
        ((aten.where.ScalarOther, Z, Z, 0), "where(z, 0.0)"),
        ((aten.isnan.default, Z), "ne(z)"),
        ((aten.special_erfc.default, Z), "erfc"),
        ((aten.softplus.default, Z), "softplus(1.0, 20.0)"),
        ((aten.elu.default, Z, 0.5), "elu(0.5)"),
        ((aten.leaky_relu.default, Z), "leaky_relu(0.01)"),
    ],
)
def test_one_operator(step: tuple, operation: str) -> None:
    assert read(step) == operation


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ((aten.mul.Tensor, Z, math.nan), "NaN"),
        ((aten.clamp_min.default, Z, math.nan), "NaN"),
        ((aten.mul.Tensor, Z, 10**400), "`mul` is not a stage"),
        ((aten.mul.Tensor, Z, Symbolic("s0")), r"only known at run time (s0)"),
        ((aten.div.Tensor_mode, Z, 2, {"rounding_mode": "floor"}), "`div` is not a stage"),
        ((aten.elu.default, Z, 1.0, 2.0), "`elu` is not a stage"),
        ((aten.atan.default, Z), "`atan` is not a stage"),
    ],
)
def test_what_no_operation_is(step: tuple, reason: str) -> None:
    assert reason in read(step)


def test_a_branch_is_read_once() -> None:
    half = (aten.mul.Tensor, Z, 0.5)
    assert read(half, half, (aten.add.Tensor, Value(1), Value(2))) == "v0 = mul(0.5); v0 add(v0)"


def test_only_the_first_that_is_none_has_a_reason() -> None:
    program = (Step(aten.atan.default, (Z,)), Step(aten.neg.default, (Value(1),)))
    assert Importer(program).values[1:] == ["`atan` is not a stage fusepass knows", ""]


@pytest.mark.parametrize(
    ("target", "operation"),
    [
        (aten.mul.Tensor, "logical_and"),
        (aten.add.Tensor, "logical_or"),
        (aten.bitwise_xor.Tensor, "logical_xor"),
        (aten.logical_and.default, "logical_and"),
    ],
)
def test_arithmetic_of_conditions_is_logical(target: torch._ops.OpOverload, operation: str) -> None:
    conditions = ((aten.gt.Scalar, Z, 1), (aten.lt.Scalar, Z, 2))
    text = read(*conditions, (target, Value(1), Value(2)))
    assert text == f"v0 = lt(2.0); gt(1.0) {operation}(v0)"


def test_a_difference_of_conditions_is_none() -> None:
    conditions = ((aten.gt.Scalar, Z, 1), (aten.lt.Scalar, Z, 2))
    assert "`sub` is not" in read(*conditions, (aten.sub.Tensor, Value(1), Value(2)))


def test_casts_are_no_operations() -> None:
    wide = (CAST, Z, torch.float32)
    assert read(wide, (aten.neg.default, Value(1)), (CAST, Value(2), torch.bfloat16)) == "neg"


@pytest.mark.parametrize("target", [aten.clamp_min.default, aten.clamp_max.default])
def test_zeros_of_two_signs_are_told_apart(target: torch._ops.OpOverload) -> None:
    for zero in (0.0, -0.0, 0.0):
        assert f"{zero!r}" in read((target, Z, zero)).replace("-inf", "").replace("inf", "")
