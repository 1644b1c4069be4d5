"""The mathematics of a program of one variable, exactly: constants stand for what they round.

0.7071067811865476 is 1/sqrt(2). Two programs are one function if their expressions are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .epilogue import Epilogue
from .table import ROWS
from .types import Arg, Number, Ref, Z

if TYPE_CHECKING:
    import sympy

_POINTS = ("-2.3", "-0.7", "0.4", "1.1", "3.9")


@lru_cache(maxsize=1024)
def expression(epilogue: Epilogue, double: bool) -> sympy.Expr | None:
    """The first output as an expression of z; None if an operation has none, or another input.

    Args:
        double: constants stand for a number if they agree to double precision, not float32's.
    """
    import sympy

    value = _value(epilogue, _symbol(), double)
    if value is None:
        return None
    value = sympy.expand(value)
    return value if value.is_finite is not False else None


def same(left: sympy.Expr, right: sympy.Expr) -> bool:
    """Whether two expressions are one function.

    sympy does not see that one with exp is one with tanh. Constants are exact by now, so functions
    that agree to 25 digits wherever they are asked are the same.
    """
    if left - right == 0:
        return True
    values = ((_at(left, point), _at(right, point)) for point in _POINTS)
    return all(a is not None and b is not None and abs(a - b) < 1e-25 for a, b in values)


@lru_cache(maxsize=8192)  # one expression is compared with many, and there is sympy's time in it
def _at(value: sympy.Expr, point: str) -> sympy.Expr | None:
    """The value at z = ``point`` to 40 digits, None if it is not finite."""
    found = value.evalf(40, subs={_symbol(): point})
    return found if found.is_finite else None


@lru_cache(maxsize=1)
def _symbol() -> sympy.Symbol:
    import sympy

    return sympy.Symbol("z", real=True)


def _value(epilogue: Epilogue, z: Any, double: bool) -> Any:
    values: list[Any] = []

    def term(arg: Arg) -> Any:
        if isinstance(arg, Ref):
            return values[arg.index]
        if isinstance(arg, Number):
            return snap(arg.value, double) if math.isfinite(arg.value) else None
        return z if arg == Z else None

    for node in epilogue.nodes:
        terms = [term(a) for a in node.args]
        if None in terms:
            return None
        value = _applied(node.op, terms, double)
        if value is None:
            return None
        values.append(value)
    return term(epilogue.outputs[0].value)


def _applied(op: str, terms: list[Any], double: bool) -> Any:
    function = _functions().get(op)
    if function is not None:
        return function(*terms)
    row = ROWS[op]
    if not row.is_macro or row.arity > 1:
        return None
    return _value(Epilogue.parse(row.expansion), terms[0], double)


@lru_cache(maxsize=1)
def _functions() -> dict[str, Callable[..., Any]]:
    import sympy

    half = sympy.Rational(1, 2)
    return {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "rsub": lambda a, b: b - a,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
        "neg": lambda a: -a,
        "reciprocal": lambda a: 1 / a,
        "square": lambda a: a**2,
        "pow": lambda a, b: a**b,
        "sqrt": sympy.sqrt,
        "rsqrt": lambda a: 1 / sympy.sqrt(a),
        "abs": sympy.Abs,
        "exp": sympy.exp,
        "exp2": lambda a: 2**a,
        "expm1": lambda a: sympy.exp(a) - 1,
        "log": sympy.log,
        "log1p": lambda a: sympy.log(1 + a),
        "erf": sympy.erf,
        "erfc": lambda a: 1 - sympy.erf(a),
        "tanh": sympy.tanh,
        "sigmoid": lambda a: half * (1 + sympy.tanh(a / 2)),
        "softplus": _softplus,
        "softcap": lambda a, c: c * sympy.tanh(a / c),
    }


def _softplus(z: Any, beta: Any, threshold: Any) -> Any:
    """Beyond a threshold of 17 or more it is z itself, which is 2^-24 of log(1 + exp(z))."""
    import sympy

    return sympy.log(1 + sympy.exp(beta * z)) / beta if threshold >= 17 else None


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

    Two numbers are the same when float32 cannot tell them apart (``double=False``) or when they are
    at most two double-precision steps apart.
    """
    import sympy

    def close(exact: float) -> bool:
        tolerance = 2 * math.ulp(exact) if double else 2.0**-24 * exact
        return abs(abs(number) - exact) <= tolerance

    for value, exact in _known_constants():
        if close(value):
            return exact if number > 0 else -exact
    short = sympy.Rational(repr(number)).limit_denominator(10**6)
    if short != 0 and close(abs(float(short))):
        return short
    return sympy.Rational(number)
