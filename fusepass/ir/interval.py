"""Facts about a program's values: between which bounds every one of them lies, NaN aside.

Bounds hold for the value as any kernel computes it: where an operation rounds or approximates, they
are let out by more than its error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .epilogue import Epilogue, Node
from .table import ROWS
from .types import Arg, DType, Input, Number, Ref

_SLACK = 2.0**-7  # more than the spacing of bfloat16, or the error of any device function
_TINY = 2.0**-24  # and what is lost where results are subnormal


@dataclass(frozen=True)
class Interval:
    """All numbers from ``lo`` to ``hi``, infinities among them if they are bounds."""

    lo: float = -math.inf
    hi: float = math.inf

    @property
    def magnitude(self) -> float:
        """The largest absolute value in it."""
        return max(abs(self.lo), abs(self.hi))

    def __contains__(self, value: float) -> bool:
        return self.lo <= value <= self.hi

    def let_out(self) -> Interval:
        """With room for the error of an operation."""
        return Interval(
            self.lo - abs(self.lo) * _SLACK - _TINY if math.isfinite(self.lo) else self.lo,
            self.hi + abs(self.hi) * _SLACK + _TINY if math.isfinite(self.hi) else self.hi,
        )


EVERYTHING = Interval()


def intervals(epilogue: Epilogue) -> tuple[Interval, ...]:
    """For each node, where its value lies whatever the inputs are."""
    return _intervals(epilogue, {})


def _intervals(epilogue: Epilogue, known: dict[Input, Interval]) -> tuple[Interval, ...]:
    found: list[Interval] = []

    def of(arg: Arg) -> Interval:
        if isinstance(arg, Ref):
            return found[arg.index]
        if isinstance(arg, Number):
            return Interval(arg.value, arg.value)
        boolean = arg.dtype is DType.BOOL
        return known.get(arg, Interval(0.0, 1.0) if boolean else EVERYTHING)

    for node in epilogue.nodes:
        found.append(_of_node(node, [of(a) for a in node.args]))
    return tuple(found)


def _of_node(node: Node, args: list[Interval]) -> Interval:
    row = ROWS[node.op]
    exact = _EXACT.get(node.op)
    if exact is not None:
        result = exact(*args)
        return result if node.rounded is None else result.let_out()
    if row.result == "b":
        return Interval(0.0, 1.0)
    if row.is_macro:
        return _of_expansion(row.expansion, args)
    rough = _ROUGH.get(node.op)
    return EVERYTHING if rough is None else rough(*args).let_out()


def _of_expansion(text: str, args: list[Interval]) -> Interval:
    expansion = Epilogue.parse(text)
    known = {i: args[0] if i.kind == "z" else args[1 + i.index] for i in expansion.inputs}
    value = expansion.outputs[0].value
    assert isinstance(value, Ref)
    return _intervals(expansion, known)[value.index].let_out()


# --- operations that give one of their arguments, or are exact otherwise --------------------------


def _max(a: Interval, b: Interval) -> Interval:
    return Interval(max(a.lo, b.lo), max(a.hi, b.hi))


def _min(a: Interval, b: Interval) -> Interval:
    return Interval(min(a.lo, b.lo), min(a.hi, b.hi))


def _abs(a: Interval) -> Interval:
    return Interval(0.0 if 0.0 in a else min(abs(a.lo), abs(a.hi)), a.magnitude)


def _either(_: Interval, a: Interval, b: Interval) -> Interval:
    return Interval(min(a.lo, b.lo), max(a.hi, b.hi))


_EXACT: dict[str, Callable[..., Interval]] = {
    "maximum": _max,
    "minimum": _min,
    "clamp": lambda a, lo, hi: _min(_max(a, lo), hi),
    "abs": _abs,
    "neg": lambda a: Interval(-a.hi, -a.lo),
    "sign": lambda a: Interval(-1.0, 1.0),
    "where": _either,
    "to": lambda a: a,
}


# --- operations that round ------------------------------------------------------------------------


def _times(a: float, b: float) -> float:
    # 0 * inf: the numbers near them have small or large products; both ends are among the others.
    return 0.0 if a == 0 or b == 0 else a * b


def _mul(a: Interval, b: Interval) -> Interval:
    ends = [_times(x, y) for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    return Interval(min(ends), max(ends))


def _div(a: Interval, b: Interval) -> Interval:
    if 0.0 in b or math.inf in b or -math.inf in b:
        return EVERYTHING
    return _mul(a, Interval(1 / b.hi, 1 / b.lo))


def _add(a: Interval, b: Interval) -> Interval:
    lo, hi = a.lo + b.lo, a.hi + b.hi  # inf - inf is NaN: nothing is known of that end
    return Interval(-math.inf if lo != lo else lo, math.inf if hi != hi else hi)


def _sub(a: Interval, b: Interval) -> Interval:
    return _add(a, Interval(-b.hi, -b.lo))


def _monotone(function: Callable[[float], float]) -> Callable[[Interval], Interval]:
    def apply(a: Interval) -> Interval:
        return Interval(function(a.lo), function(a.hi))

    return apply


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf


def _sigmoid(value: float) -> float:
    return 1 / (1 + _exp(-value))


_ROUGH: dict[str, Callable[..., Interval]] = {
    "add": _add,
    "sub": _sub,
    "rsub": lambda a, b: _sub(b, a),
    "mul": _mul,
    "div": _div,
    "square": lambda a: _mul(_abs(a), _abs(a)),
    "exp": _monotone(_exp),
    "exp2": _monotone(lambda v: 2.0**v if v < 1023 else math.inf),
    "expm1": _monotone(lambda v: _exp(v) - 1),
    "sigmoid": _monotone(_sigmoid),
    "tanh": _monotone(math.tanh),
    "erf": _monotone(math.erf),
    "erfc": lambda a: Interval(math.erfc(a.hi), math.erfc(a.lo)),
    "log1p": lambda a: Interval(
        math.log1p(a.lo) if a.lo > -1 else -math.inf, math.log1p(max(a.hi, -1 + 2**-53))
    ),
    "sin": lambda a: Interval(-1.0, 1.0),
    "cos": lambda a: Interval(-1.0, 1.0),
    "sqrt": lambda a: Interval(math.sqrt(max(a.lo, 0.0)), math.sqrt(max(a.hi, 0.0))),
}
