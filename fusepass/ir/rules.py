"""The folding rules. None uses what a clamp, a NaN or an infinity would break."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

from .epilogue import Node
from .rule import Rule, Scope
from .table import ROWS
from .types import KINDS, Arg, DType, Input, Number, Ref

INF = math.inf


def _number(arg: Arg) -> float | None:
    return arg.value if isinstance(arg, Number) else None


def _is(arg: Arg, value: float) -> bool:
    """Whether ``arg`` is that number, of that sign."""
    return isinstance(arg, Number) and arg == Number(value)


# --- one spelling ---------------------------------------------------------------------------------


def _rank(arg: Arg) -> tuple[int, int]:
    if isinstance(arg, Ref):
        return (-1, arg.index)
    return (len(KINDS), 0) if isinstance(arg, Number) else (KINDS.index(arg.kind), arg.index)


def _order(scope: Scope, node: Node) -> Arg | None:
    a, b = node.args
    return None if _rank(a) <= _rank(b) else scope.like(node, node.op, b, a)


def _subtraction(scope: Scope, node: Node) -> Arg | None:
    """``sub`` where the first is the chain's, ``rsub`` where the second is."""
    a, b = node.args
    if node.op == "rsub" and isinstance(b, Ref):
        return scope.like(node, "sub", b, a)
    turned = node.op == "sub" and _rank(b) < _rank(a) and not isinstance(a, Ref)
    return scope.like(node, "rsub", b, a) if turned and not isinstance(b, Ref) else None


def _negation(scope: Scope, node: Node) -> Arg | None:
    return scope.like(node, "mul", node.args[0], -1.0)


def _one_sided(scope: Scope, node: Node) -> Arg | None:
    value, bound = node.args
    if not isinstance(bound, Number) or isinstance(value, Number):
        return None
    bounds = (bound, INF) if node.op == "maximum" else (-INF, bound)
    return scope.like(node, "clamp", value, *bounds)


_POWERS = {0.5: "sqrt", 2.0: "square", -1.0: "reciprocal", -0.5: "rsqrt"}


def _power(scope: Scope, node: Node) -> Arg | None:
    """What eager computes for these exponents."""
    base, exponent = node.args
    number = _number(exponent)
    if number in _POWERS:
        return scope.like(node, _POWERS[number], base)
    if number == 3.0:
        return scope.like(node, "mul", scope.apply("square", base), base)
    if number == -2.0:
        return scope.like(node, "reciprocal", scope.apply("square", base))
    return None


def _inverse(scope: Scope, node: Node) -> Arg | None:
    return scope.like(node, "reciprocal", node.args[1]) if _is(node.args[0], 1.0) else None


def _square(scope: Scope, node: Node) -> Arg | None:
    a, b = node.args
    return scope.like(node, "square", a) if a == b else None


# --- nothing to do --------------------------------------------------------------------------------

_NEUTRAL = {
    "mul": (1.0,),
    "div": (1.0,),
    "add": (0.0, -0.0),
    "sub": (0.0, -0.0),
    "pow": (1.0,),
}


def _neutral(scope: Scope, node: Node) -> Arg | None:
    if node.op == "to":
        return node.args[0]
    if node.op == "clamp":
        value, lo, hi = node.args
        return value if _is(lo, -INF) and _is(hi, INF) else None
    return node.args[0] if any(_is(node.args[1], n) for n in _NEUTRAL[node.op]) else None


def _sign_lost(scope: Scope, node: Node) -> Arg | None:
    """|-a| and |a| and (-a)^2 and |a|^2 do not see the sign."""
    inner = scope.node(node.args[0], "abs") or scope.node(node.args[0], "mul")
    if inner is None or (inner.op == "mul" and not _is(inner.args[1], -1.0)):
        return None
    return scope.like(node, node.op, inner.args[0])


def _is_condition(scope: Scope, arg: Arg) -> bool:
    if isinstance(arg, Input):
        return arg.dtype is not None and arg.dtype.value == "bool"
    return isinstance(arg, Ref) and ROWS[scope.builder.nodes[arg.index].op].result == "b"


def _truth(scope: Scope, node: Node) -> Arg | None:
    """A condition compared with 0 is the condition."""
    a, b = node.args
    return a if _is_condition(scope, a) and (_is(b, 0.0) or _is(b, -0.0)) else None


def _double_negation(scope: Scope, node: Node) -> Arg | None:
    inner = scope.node(node.args[0], "logical_not")
    return inner.args[0] if inner is not None and _is_condition(scope, inner.args[0]) else None


def _choice(scope: Scope, node: Node) -> Arg | None:
    condition, a, b = node.args
    if a == b and not isinstance(a, Number):
        return a
    inner = scope.node(condition, "logical_not")
    return None if inner is None else scope.like(node, "where", inner.args[0], b, a)


# --- numbers --------------------------------------------------------------------------------------


def _division_by_power_of_two(scope: Scope, node: Node) -> Arg | None:
    divisor = _number(node.args[1])
    if divisor is None or abs(math.frexp(divisor)[0]) != 0.5 or not scope.site.is_normal(divisor):
        return None
    inverse = 1 / divisor
    return scope.like(node, "mul", node.args[0], inverse) if scope.site.is_normal(inverse) else None


def _division(scope: Scope, node: Node) -> Arg | None:
    """On 16-bit sites: 2^-24 is nothing beside their rounding. Elsewhere division is division."""
    divisor = _number(node.args[1])
    if divisor is None or not scope.site.short or not scope.site.is_normal(divisor):
        return None
    inverse = 1 / divisor
    return scope.apply("mul", node.args[0], inverse) if scope.site.is_normal(inverse) else None


def _sign(scope: Scope, node: Node) -> Arg | None:
    """A factor of -1 goes into the factor before it."""
    inner = scope.node(node.args[0], "mul")
    a, b = (_number(inner.args[1]) if inner else None), _number(node.args[1])
    if inner is None or a is None or b is None or -1.0 not in (a, b):
        return None
    return scope.like(node, "mul", inner.args[0], a * b)


def _factors(scope: Scope, node: Node) -> Arg | None:
    """Two factors as one, where no product of the two over- or underflows where one does not."""
    inner = scope.node(node.args[0], "mul")
    a, b = (_number(inner.args[1]) if inner else None), _number(node.args[1])
    if inner is None or a is None or b is None or not scope.site.is_normal(a * b):
        return None
    if not scope.site.short and not _is_product(a, b, scope.site.dtype):
        return None  # 16 bits do not show what float32 and float64 would
    growing, shrinking = min(abs(a), abs(b)) >= 1, max(abs(a), abs(b)) <= 1
    return scope.apply("mul", inner.args[0], a * b) if growing or shrinking else None


def _is_product(a: float, b: float, dtype: DType) -> bool:
    """Whether the product of ``a`` and ``b`` is exact, all three as ``dtype`` rounds them."""
    product = a * b
    if dtype is not DType.F64:
        try:
            a, b, product = (struct.unpack("f", struct.pack("f", v))[0] for v in (a, b, product))
        except OverflowError:  # beyond float32's range
            return False
    return math.isfinite(product) and Fraction(a) * Fraction(b) == Fraction(product)


def _bounds(scope: Scope, node: Node) -> Arg | None:
    """Two one-sided clamps, one from either side, as one: clamp(lo, hi) = min(max(z, lo), hi)."""
    inner = scope.node(node.args[0], "clamp")
    if inner is None:
        return None
    value, lo, first_hi = inner.args
    _, second_lo, hi = node.args
    if _is(first_hi, INF) and _is(second_lo, -INF):
        return scope.like(node, "clamp", value, lo, hi)
    if not _is(lo, -INF) or not _is(hi, INF):
        return None
    # max(min(z, hi), lo) gives lo where the bounds cross, clamp would give hi.
    low, high = _number(second_lo), _number(first_hi)
    ordered = low is not None and high is not None and low <= high
    return scope.like(node, "clamp", value, second_lo, first_hi) if ordered else None


_COMMUTATIVE = tuple(name for name, row in ROWS.items() if row.commutative)

# One way to write the same operations.
SPELLING = (
    Rule("what commutes begins with the chain", _COMMUTATIVE, _order, marked=True),
    Rule("subtraction begins with the chain", ("sub", "rsub"), _subtraction, marked=True),
    Rule("-a = a * -1", ("neg",), _negation, marked=True),
    Rule("max, min with a number = clamp", ("maximum", "minimum"), _one_sided, marked=True),
    Rule("powers that eager computes otherwise", ("pow",), _power, marked=True),
    Rule("1 / a = reciprocal(a)", ("div",), _inverse, marked=True),
    Rule("a * a = square(a)", ("mul",), _square, marked=True),
    Rule("two one-sided clamps", ("clamp",), _bounds),
    Rule("nothing to do", (*_NEUTRAL, "to", "clamp"), _neutral),
    Rule("a sign that is not seen", ("abs", "square"), _sign_lost),
    Rule("condition != 0", ("ne",), _truth),
    Rule("not not", ("logical_not",), _double_negation),
    Rule("where(not c, a, b) = where(c, b, a)", ("where",), _choice),
)

NUMBERS = (
    Rule("a / 2^n = a * 2^-n", ("div",), _division_by_power_of_two, marked=True),
    Rule("a / c = a * (1/c), 16 bits", ("div",), _division, rounds=2),
    Rule("a * c * -1 = a * -c", ("mul",), _sign),
    Rule("a * c * d = a * cd", ("mul",), _factors, rounds=3),
)

RULES = (*SPELLING, *NUMBERS)
