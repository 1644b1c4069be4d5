"""Import: a region's operators, one to one, as operations of an epilogue's program.

An operator of the graph is an operation of the table, or a few of them; nothing needs to be
recognised. Casts are none: a region has only such as lose nothing of z.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Union

import torch

from ..ir import Builder, DType, Input, Number, Ref, Z
from ..ir.types import Arg as Value
from .program import Arg, Program, Step, Symbolic, TensorConst
from .program import Value as Result

INF = math.inf
ONE = Number(1.0)
_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}
_LOGICAL = {
    "logical_and": "logical_and",
    "logical_or": "logical_or",
    "logical_xor": "logical_xor",
    "logical_not": "logical_not",
    "bitwise_and": "logical_and",
    "bitwise_or": "logical_or",
    "bitwise_xor": "logical_xor",
    "bitwise_not": "logical_not",
    "mul": "logical_and",
    "add": "logical_or",
}


# What torch computes of conditions as of numbers, 0 and 1.
_OF_CONDITIONS = {"where", "mul", *_COMPARISONS}


class Unknown(Exception):
    """Why an operator is no operation of the table."""


class Importer:
    """A region's program as operations.

    Attributes:
        builder: holds them.
        values: for z and each step the value of it, or why there is none: the reason is empty where
            an earlier step's is meant.
    """

    def __init__(self, program: Program) -> None:
        self.builder = Builder()
        self.values: list[Union[Ref, Input, str]] = [Z]
        self.conditions: set[int] = set()  # steps whose results are of torch's bool
        for step in program:
            self.values.append(self._read(step))

    def _read(self, step: Step) -> Union[Ref, Input, str]:
        read = [a for a in (*step.args, *dict(step.kwargs).values()) if isinstance(a, Result)]
        if any(isinstance(self.values[r.index], str) for r in read):
            return ""
        conditions = all(r.index in self.conditions for r in read)
        conditions = conditions and not any(map(_is_real, step.args))
        try:
            args = [self._arg(step, a) for a in step.args]
            named = {name: self._arg(step, a) for name, a in step.kwargs}
            value = self._value(step, conditions, args, named)
        except Unknown as reason:
            return str(reason)
        if _is_condition(step, conditions and not _has_numbers(args)):
            self.conditions.add(len(self.values))
        return value

    def _value(
        self, step: Step, conditions: bool, args: list[Any], named: dict[str, Any]
    ) -> Union[Ref, Input]:
        if step.cast is not None:
            value = args[0]
        elif conditions and step.name in _LOGICAL and not _has_numbers(args):
            value = self.builder.apply(_LOGICAL[step.name], *args)
        elif step.name not in _READERS or (conditions and step.name not in _OF_CONDITIONS):
            raise Unknown(_unknown(step))
        else:
            try:
                value = _READERS[step.name](self.builder, *args, **named)
            except (TypeError, ValueError):  # other arguments than an operation takes
                raise Unknown(_unknown(step)) from None
        if not isinstance(value, (Ref, Input)):
            raise Unknown(_unknown(step))
        return value

    def _arg(self, step: Step, arg: Arg) -> Any:
        if isinstance(arg, Result):
            return self.values[arg.index]
        if isinstance(arg, Symbolic):
            raise Unknown(f"`{step.name}` takes a size that is only known at run time ({arg.name})")
        if isinstance(arg, TensorConst):
            arg = arg.value
        if not isinstance(arg, (bool, int, float)):
            return arg  # an operand, a dtype, an option
        try:
            number = float(arg)
        except OverflowError:
            raise Unknown(_unknown(step)) from None
        if number != number:
            raise Unknown(f"`{step.name}` has a NaN constant")
        return Number(number)


def _unknown(step: Step) -> str:
    return f"`{step.name}` is not a stage fusepass knows"


def _is_real(arg: Arg) -> bool:
    """Whether an argument is an operand that is no mask."""
    return isinstance(arg, Input) and arg.dtype is not DType.BOOL


def _has_numbers(args: list[Any]) -> bool:
    return any(isinstance(a, Number) for a in args)


def _is_condition(step: Step, of_conditions: bool) -> bool:
    """Whether a result is of torch's bool, in which a sum is logical or."""
    if step.cast is not None:
        return of_conditions and step.cast is torch.bool
    if step.name in _COMPARISONS or step.name == "isnan" or step.name.startswith("logical"):
        return True
    return of_conditions and (step.name in _LOGICAL or step.name == "where")


# --- operators -----------------------------------------------------------------------------------

Reader = Callable[..., Value]


def _plain(op: str) -> Reader:
    return lambda b, *args: b.apply(op, *args)


def _plus(op: str) -> Reader:
    """``a + alpha b`` and its like; what alpha multiplies is the last argument of ``op``."""

    def read(b: Builder, left: Value, right: Value, alpha: Value | None = None) -> Value:
        if op == "rsub":
            left, right = right, left
        if alpha is not None:
            if isinstance(right, Number) and isinstance(alpha, Number):
                right = Number(right.value * alpha.value)
            else:
                right = b.apply("mul", right, alpha)
        return b.apply("add" if op == "add" else "sub", left, right)

    return read


def _div(b: Builder, left: Value, right: Value, rounding_mode: object = None) -> Value:
    if rounding_mode is not None:
        raise ValueError("rounded quotients are none of the table's")
    return b.apply("div", left, right)


def _clamp(b: Builder, z: Value, min: Value | None = None, max: Value | None = None) -> Value:
    return b.apply(
        "clamp", z, Number(-INF) if min is None else min, Number(INF) if max is None else max
    )


def _bound(op: str) -> Reader:
    """A bound that is one number for all is a clamp's."""

    def read(b: Builder, left: Value, right: Value) -> Value:
        if _is_scalar(left):
            left, right = right, left
        if not _is_scalar(right):
            return b.apply(op, left, right)
        return b.apply("clamp", left, *((right, INF) if op == "maximum" else (-INF, right)))

    return read


def _is_scalar(value: Value) -> bool:
    return isinstance(value, Number) or (isinstance(value, Input) and value.kind == "$")


def _hardtanh(
    b: Builder, z: Value, min_val: Value | float = -1.0, max_val: Value | float = 1.0
) -> Value:
    return b.apply("clamp", z, min_val, max_val)


def _gelu(b: Builder, z: Value, approximate: str = "none") -> Value:
    return b.apply("gelu_tanh" if approximate == "tanh" else "gelu", z)


def _elu(
    b: Builder,
    z: Value,
    alpha: Value | float = 1.0,
    scale: Value = ONE,
    input_scale: Value = ONE,
) -> Value:
    if {scale, input_scale} != {ONE}:
        raise ValueError("a scaled ELU is several operations")
    return b.apply("elu", z, alpha)


def _softplus(
    b: Builder, z: Value, beta: Value | float = 1.0, threshold: Value | float = 20.0
) -> Value:
    return b.apply("softplus", z, beta, threshold)


def _threshold(b: Builder, z: Value, threshold: Value, value: Value) -> Value:
    return b.apply("where", b.apply("le", z, threshold), value, z)


def _ndtr(b: Builder, z: Value) -> Value:
    return b.apply("mul", b.apply("erfc", b.apply("mul", z, -math.sqrt(0.5))), 0.5)


def reads(target: object) -> bool:
    """Whether an operator of ATen's is one of the table's, with arguments that fit."""
    return isinstance(target, torch._ops.OpOverload) and Step(target, ()).name in _READERS


# Of which the table has the very operation.
_SAME = (
    "mul", "neg", "reciprocal", "square", "pow", "sqrt", "rsqrt", "abs", "sign", "exp", "exp2",
    "expm1", "log", "log1p", "erf", "erfc", "tanh", "sigmoid", "sin", "cos", "round", "floor",
    "ceil", "trunc", "where", "silu", "mish", "hardswish", "hardsigmoid",
    *_COMPARISONS,
)  # fmt: skip
_READERS: dict[str, Reader] = {
    **{name: _plain(name) for name in _SAME},
    **{name: _plain(op) for name, op in _LOGICAL.items() if name not in ("mul", "add")},
    "add": _plus("add"),
    "sub": _plus("sub"),
    "rsub": _plus("rsub"),
    "div": _div,
    "sgn": _plain("sign"),
    "maximum": _bound("maximum"),
    "minimum": _bound("minimum"),
    "special_erfc": _plain("erfc"),
    "special_ndtr": _ndtr,
    "isnan": lambda b, z: b.apply("ne", z, z),
    "relu": lambda b, z: b.apply("clamp", z, 0.0, INF),
    "relu6": lambda b, z: b.apply("clamp", z, 0.0, 6.0),
    "clamp": _clamp,
    "clamp_min": lambda b, z, bound: b.apply("clamp", z, bound, INF),
    "clamp_max": lambda b, z, bound: b.apply("clamp", z, -INF, bound),
    "hardtanh": _hardtanh,
    "masked_fill": lambda b, z, mask, value: b.apply("where", mask, value, z),
    "threshold": _threshold,
    "gelu": _gelu,
    "elu": _elu,
    "celu": lambda b, z, alpha=1.0: b.apply("celu", z, alpha),
    "leaky_relu": lambda b, z, slope=0.01: b.apply("leaky_relu", z, slope),
    "softplus": _softplus,
}
