"""Simplify: the canonical stages of a site, the same function with fewer or cheaper steps."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from fractions import Fraction

import torch

from .epilogue import Operand, Scalar, StageCall

_SINGLE = (2.0**-126, (2 - 2.0**-23) * 2.0**127)
_DOUBLE = (2.0**-1022, 1.7976931348623157e308)
# Computed in float32 and rounded to 16 bits: an error of float32's last place is not seen.
_SHORT = (torch.float16, torch.bfloat16)


def simplify(
    stages: Sequence[StageCall], dtype: torch.dtype, bitwise: bool
) -> tuple[StageCall, ...]:
    """The canonical stages that compute what ``stages`` compute.

    Args:
        stages: as written.
        dtype: of the site; it computes in float64 for float64, else in float32.
        bitwise: keep every rounding of the original; only exact changes are made.
    """
    result: list[StageCall] = []
    for stage in stages:
        stage = _without_division(stage, dtype, bitwise)
        merged = _merge(result[-1], stage, dtype, bitwise) if result else None
        if merged is None:
            result.append(stage)
        else:
            result[-1] = merged
    return tuple(result)


def _without_division(stage: StageCall, dtype: torch.dtype, bitwise: bool) -> StageCall:
    """A division as a multiplication where that is exact, or its error is not seen."""
    if stage.name != "div":
        return stage
    (divisor,) = stage.scalars
    if isinstance(divisor, Operand) or not _normal(divisor, dtype):
        return stage
    inverse = 1 / divisor
    exact = abs(math.frexp(divisor)[0]) == 0.5
    unseen = dtype in _SHORT and not bitwise
    return StageCall("mul", (inverse,)) if _normal(inverse, dtype) and (exact or unseen) else stage


def _normal(number: float, dtype: torch.dtype) -> bool:
    smallest, largest = _DOUBLE if dtype is torch.float64 else _SINGLE
    return smallest <= abs(number) <= largest


def _merge(
    first: StageCall, second: StageCall, dtype: torch.dtype, bitwise: bool
) -> StageCall | None:
    if first.name != second.name:
        return None
    if first.name == "clamp":
        return _merge_clamps(first, second)
    return None if first.name != "mul" or bitwise else _merge_muls(first, second, dtype)


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


def _merge_muls(first: StageCall, second: StageCall, dtype: torch.dtype) -> StageCall | None:
    """Two factors as one, if no product of the two steps over- or underflows where one does not.

    What 16 bits do not show, float32 and float64 would: there the factor must be exact.
    """
    a, b = first.scalars[0], second.scalars[0]
    if isinstance(a, Operand) or isinstance(b, Operand):
        return None
    product = a * b
    growing = abs(a) >= 1 and abs(b) >= 1
    shrinking = abs(a) <= 1 and abs(b) <= 1
    sign: Scalar = -1.0
    if not (growing or shrinking or sign in (a, b)) or not _normal(product, dtype):
        return None
    exact = dtype in _SHORT or _is_product(product, a, b, dtype)
    return StageCall("mul", (product,)) if exact else None


def _is_product(product: float, a: float, b: float, dtype: torch.dtype) -> bool:
    """Whether ``product`` is that of ``a`` and ``b``, all three as ``dtype`` rounds them."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return False
    if dtype is not torch.float64:
        try:
            a, b, product = (struct.unpack("f", struct.pack("f", v))[0] for v in (a, b, product))
        except OverflowError:  # beyond float32's range
            return False
    return Fraction(a) * Fraction(b) == Fraction(product)
