"""From a program to a stage: by its operator when it is one step, by its mathematics when more.

Nothing here lists spellings. A program of several steps becomes a sympy expression whose constants
are snapped to what they stand for, and is compared with the formulas of ``stages.STAGES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Union

from .epilogue import Operand, Scalar, StageCall
from .program import Arg, Program, Step, Symbolic, TensorConst, Value
from .stages import STAGES

if TYPE_CHECKING:
    import sympy

INF = math.inf
MAX_STEPS = 24  # the longest program compared with a formula; tanh-GELU has ten

Recognised = Union[StageCall, str]


@lru_cache(maxsize=4096)
def recognise(program: Program, double: bool = False) -> Recognised:
    """The one stage that ``program`` computes, or why it is none.

    Args:
        program: a unary function of its input, at least one step.
        double: constants must agree to double precision (float64), not just to float32's.
    """
    if len(program) == 1:
        return _one_step(program[0])
    if len(program) > MAX_STEPS:
        return f"{len(program)} operators in one function are more than any stage has"
    return _by_formula(program, double)


# --- one operator -------------------------------------------------------------------------------


def _one_step(step: Step) -> Recognised:
    symbols = [a.name for a in step.args if isinstance(a, Symbolic)]
    if symbols:
        return f"`{step.name}` takes a size that is only known at run time ({symbols[0]})"
    stage = _READERS.get(step.name, _namesake)(step)
    if stage is None:
        return f"`{step.name}` is not a stage fusepass knows"
    if any(not isinstance(s, Operand) and math.isnan(s) for s in stage[1]):
        return f"`{step.name}` has a NaN constant"
    return StageCall(*stage)


_Read = Union[tuple[str, tuple[Scalar, ...]], None]


def _scalar(arg: Arg) -> Scalar | None:
    if isinstance(arg, Operand):
        return arg
    if isinstance(arg, TensorConst):
        return arg.value
    if not isinstance(arg, (bool, int, float)):
        return None
    try:
        return float(arg)
    except OverflowError:
        return None


def _operands(step: Step) -> tuple[Arg, Arg]:
    left, right = step.args[:2]
    return left, right


def _mul(step: Step) -> _Read:
    left, right = _operands(step)
    scalar = _scalar(right if isinstance(left, Value) else left)
    return None if scalar is None else ("mul", (scalar,))


def _div(step: Step) -> _Read:
    left, right = _operands(step)
    scalar = _scalar(right)
    if not isinstance(left, Value) or scalar is None or dict(step.kwargs).get("rounding_mode"):
        return None
    return ("div", (scalar,))


def _clamp_between(lo: Arg, hi: Arg) -> _Read:
    low = -INF if lo is None else _scalar(lo)
    high = INF if hi is None else _scalar(hi)
    return None if low is None or high is None else ("clamp", (low, high))


def _named(step: Step, lower: str, upper: str, lo: Arg, hi: Arg) -> dict[str, Arg]:
    given = dict(zip((lower, upper), step.args[1:], strict=False))
    return {lower: lo, upper: hi, **given, **dict(step.kwargs)}


def _clamp(step: Step) -> _Read:
    named = _named(step, "min", "max", None, None)
    return _clamp_between(named["min"], named["max"])


def _hardtanh(step: Step) -> _Read:
    named = _named(step, "min_val", "max_val", -1.0, 1.0)
    return _clamp_between(named["min_val"], named["max_val"])


def _bound(step: Step) -> Arg:
    left, right = _operands(step)
    return right if isinstance(left, Value) else left


def _lower(step: Step) -> _Read:
    return _clamp_between(_bound(step), None)


def _upper(step: Step) -> _Read:
    return _clamp_between(None, _bound(step))


def _gelu(step: Step) -> _Read:
    tanh = "tanh" in (*step.args, *dict(step.kwargs).values())
    return ("gelu_tanh" if tanh else "gelu", ())


def _namesake(step: Step) -> _Read:
    """An operator of one tensor and nothing else is the stage that has its name."""
    stage = STAGES.get(step.name)
    alone = len(step.args) == 1 and not step.kwargs
    return (step.name, ()) if stage and stage.arity == 0 and alone else None


_READERS: dict[str, Callable[[Step], _Read]] = {
    "mul": _mul,
    "div": _div,
    "neg": lambda step: ("mul", (-1.0,)),
    "clamp": _clamp,
    "hardtanh": _hardtanh,
    "clamp_min": _lower,
    "maximum": _lower,
    "clamp_max": _upper,
    "minimum": _upper,
    "relu": lambda step: ("clamp", (0.0, INF)),
    "gelu": _gelu,
}


# --- a formula ----------------------------------------------------------------------------------


def _by_formula(program: Program, double: bool) -> Recognised:
    unknown = [s.name for s in program if s.name not in _mathematics()]
    if unknown:
        return f"`{unknown[0]}` is not part of a stage fusepass knows"
    if not any(s.name in _FUNCTIONS for s in program):
        return "plain arithmetic of several steps is not a stage fusepass knows"
    expression = _expression(program, double)
    if expression is None:
        return "the function has a scalar that is only known at run time or not finite"
    for name in STAGES:
        if STAGES[name].arity == 0 and _same(expression, _formula(name)):
            return StageCall(name)
    near = [n for n in STAGES if STAGES[n].arity == 0 and _kinds(_formula(n)) == _kinds(expression)]
    hint = f"; {near[0]} is {_readable(_formula(near[0]))}" if near else ""
    return f"f(z) = {_readable(expression)} is not a stage fusepass knows{hint}"


_POINTS = ("-2.3", "-0.7", "0.4", "1.1", "3.9")


def _same(left: sympy.Expr, right: sympy.Expr) -> bool:
    """Whether two expressions are one function.

    sympy does not see that one with exp is one with tanh. Constants are exact by now, so functions
    that agree to 25 digits wherever they are asked are the same.
    """
    difference = left - right
    if difference == 0:
        return True
    values = (difference.evalf(40, subs={_symbol(): point}) for point in _POINTS)
    return all(value.is_finite and abs(value) < 1e-25 for value in values)


def _kinds(expression: sympy.Expr) -> set[type]:
    import sympy

    return {type(f) for f in expression.atoms(sympy.Function)}


def _readable(expression: sympy.Expr) -> str:
    """The expression with its numbers as decimals."""
    return str(expression.replace(lambda e: e.is_number and not e.is_Integer, lambda e: e.evalf(6)))


# Every formula of several steps has one of these: without, sympy need not be asked.
_FUNCTIONS = {"erf", "erfc", "special_ndtr", "tanh", "sigmoid", "exp"}


@lru_cache(maxsize=1)
def _symbol() -> sympy.Symbol:
    import sympy

    return sympy.Symbol("z", real=True)


@lru_cache(maxsize=64)
def _formula(name: str) -> sympy.Expr:
    import sympy

    return sympy.expand(STAGES[name].formula(_symbol()))


def _expression(program: Program, double: bool) -> sympy.Expr | None:
    import sympy

    values = [_symbol()]
    for step in program:
        function = _mathematics()[step.name]
        arguments = [_term(arg, values, double) for arg in step.args]
        named = {name: _term(arg, values, double) for name, arg in step.kwargs}
        if None in arguments or None in named.values():
            return None
        values.append(function(*arguments, **named))
    expression = sympy.expand(values[-1])
    return expression if expression.is_finite is not False else None


def _term(arg: Arg, values: list[Any], double: bool) -> Any:
    if isinstance(arg, Value):
        return values[arg.index]
    number = _scalar(arg)
    if number is None or isinstance(number, Operand) or not math.isfinite(number):
        return None
    return snap(number, double)


@lru_cache(maxsize=1)
def _mathematics() -> dict[str, Callable[..., Any]]:
    """What an operator of a longer program computes, exactly."""
    import sympy

    half = sympy.Rational(1, 2)
    return {
        "add": lambda a, b, alpha=1: a + alpha * b,
        "sub": lambda a, b, alpha=1: a - alpha * b,
        "rsub": lambda a, b, alpha=1: b - alpha * a,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
        "neg": lambda a: -a,
        "pow": lambda a, b: a**b,
        "square": lambda a: a**2,
        "exp": sympy.exp,
        "reciprocal": lambda a: 1 / a,
        "erf": sympy.erf,
        "erfc": lambda a: 1 - sympy.erf(a),
        "special_ndtr": lambda a: half * (1 + sympy.erf(a / sympy.sqrt(2))),
        "tanh": sympy.tanh,
        "sigmoid": lambda a: half * (1 + sympy.tanh(a / 2)),
    }


@lru_cache(maxsize=1)
def _known_constants() -> tuple[tuple[float, Any], ...]:
    """Irrational numbers that activations are written with, and their usual products."""
    import sympy

    root, cubic = sympy.sqrt(2 / sympy.pi), sympy.Rational(44715, 1000000)
    gauss = (sympy.sqrt(2), 1 / sympy.sqrt(2), sympy.sqrt(2) / 4)
    exact = (*gauss, root, 2 * root, root / 2, root * cubic, 2 * root * cubic)
    return tuple((float(value.evalf(30)), value) for value in exact)


@lru_cache(maxsize=1024)
def snap(number: float, double: bool) -> sympy.Expr:
    """The exact number that a finite constant of a program stands for.

    0.7071067811865476 is 1/sqrt(2). Two numbers are the same when float32 cannot tell them apart
    (``double=False``) or when they are at most two double-precision steps apart.
    """
    import sympy

    def same(exact: float) -> bool:
        tolerance = 2 * math.ulp(exact) if double else 2.0**-24 * exact
        return abs(abs(number) - exact) <= tolerance

    for value, exact in _known_constants():
        if same(value):
            return exact if number > 0 else -exact
    short = sympy.Rational(repr(number)).limit_denominator(10**6)
    if short != 0 and same(abs(float(short))):
        return short
    return sympy.Rational(number)
