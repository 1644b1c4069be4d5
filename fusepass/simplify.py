"""Simplify: the canonical stages of a site, the same function with fewer or cheaper steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .epilogue import Operand, Scalar, StageCall

_NORMAL = {
    False: (2.0**-126, (2 - 2.0**-23) * 2.0**127),
    True: (2.0**-1022, 1.7976931348623157e308),
}


def simplify(stages: Sequence[StageCall], double: bool, bitwise: bool) -> tuple[StageCall, ...]:
    """The canonical stages that compute what ``stages`` compute.

    Args:
        stages: at least one stage, as written.
        double: whether the site computes in float64, else in float32.
        bitwise: keep every rounding of the original; only exact changes are made.
    """
    result: list[StageCall] = []
    for stage in stages:
        stage = _without_division(stage, double, bitwise)
        merged = _merge(result[-1], stage, double, bitwise) if result else None
        if merged is None:
            result.append(stage)
        else:
            result[-1] = merged
    return tuple(result)


def _without_division(stage: StageCall, double: bool, bitwise: bool) -> StageCall:
    if stage.name != "div":
        return stage
    (divisor,) = stage.scalars
    if isinstance(divisor, Operand) or not _normal(divisor, double):
        return stage
    inverse = 1 / divisor
    exact = abs(math.frexp(divisor)[0]) == 0.5
    return (
        StageCall("mul", (inverse,))
        if _normal(inverse, double) and (exact or not bitwise)
        else stage
    )


def _normal(number: float, double: bool) -> bool:
    smallest, largest = _NORMAL[double]
    return smallest <= abs(number) <= largest


def _merge(first: StageCall, second: StageCall, double: bool, bitwise: bool) -> StageCall | None:
    if first.name != second.name:
        return None
    if first.name == "clamp":
        return _merge_clamps(first, second)
    return None if first.name != "mul" or bitwise else _merge_muls(first, second, double)


def _merge_clamps(first: StageCall, second: StageCall) -> StageCall | None:
    """Two one-sided clamps, one from either side, as one: clamp(lo, hi) = min(max(z, lo), hi)."""
    (lo, first_hi), (second_lo, hi) = first.scalars, second.scalars
    if first_hi == math.inf and second_lo == -math.inf:
        return StageCall("clamp", (lo, hi))
    (first_lo, hi), (lo, second_hi) = first.scalars, second.scalars
    if first_lo != -math.inf or second_hi != math.inf:
        return None
    # max(min(z, hi), lo) gives lo where the bounds cross, clamp would give hi.
    ordered = not isinstance(lo, Operand) and not isinstance(hi, Operand) and lo <= hi
    return StageCall("clamp", (lo, hi)) if ordered else None


def _merge_muls(first: StageCall, second: StageCall, double: bool) -> StageCall | None:
    """Two factors as one, if no product of the two steps over- or underflows where one does not."""
    a, b = first.scalars[0], second.scalars[0]
    if isinstance(a, Operand) or isinstance(b, Operand):
        return None
    product = a * b
    growing = abs(a) >= 1 and abs(b) >= 1
    shrinking = abs(a) <= 1 and abs(b) <= 1
    sign: Scalar = -1.0
    foldable = growing or shrinking or sign in (a, b)
    return StageCall("mul", (product,)) if foldable and _normal(product, double) else None
