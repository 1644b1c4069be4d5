"""The table of stages: everything the matcher finds behind a Linear, one row a stage.

A row holds the stage's mathematics (what the matcher recognises) and its torch reference (what
validation runs). Its device code is that of the operation of the same name in ``ir``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sympy
    import torch

MAX_STAGES = 8  # stages in one epilogue
MAX_SCALARS = 16  # scalars (constants and operands) in one epilogue: the kernels' argument block


@dataclass(frozen=True)
class Stage:
    """One row of the table: a function of one element and ``arity`` scalars.

    Attributes:
        name: the word in an epilogue's text, as in ``clamp(-2.0, 2.0)``.
        arity: how many scalars it takes, each a constant or a run-time operand.
        code: a number of its own.
        formula: ``formula(z, *scalars)`` as a sympy expression; the mathematics, unrounded.
        reference: ``reference(z, *scalars)`` in torch, differentiable, in ``z``'s dtype. It is the
            very operator eager runs, so that on the CPU ``bitwise`` is a matter of calling it.
    """

    name: str
    arity: int
    code: int
    formula: Callable[..., sympy.Expr]
    reference: Callable[..., torch.Tensor]


def _clamp_formula(z: Any, lo: Any, hi: Any) -> Any:
    import sympy

    return sympy.Min(sympy.Max(z, lo), hi)


def _gelu_formula(z: Any) -> Any:
    import sympy

    return z / 2 * (1 + sympy.erf(z / sympy.sqrt(2)))


def _gelu_tanh_formula(z: Any) -> Any:
    import sympy

    cubic = z + sympy.Rational(44715, 1000000) * z**3
    return z / 2 * (1 + sympy.tanh(sympy.sqrt(2 / sympy.pi) * cubic))


def bounds_in(z: torch.Tensor, lo: Any, hi: Any) -> tuple[Any, Any]:
    """The bounds as ``z``'s dtype rounds them: torch.clamp takes no number beyond its range.

    It takes two numbers or two tensors, never one of each.
    """
    import torch

    if isinstance(lo, torch.Tensor) or isinstance(hi, torch.Tensor):
        lo, hi = (torch.as_tensor(v, dtype=z.dtype, device=z.device) for v in (lo, hi))
        return lo, hi
    return _within(lo, z.dtype), _within(hi, z.dtype)


def _within(bound: float, dtype: torch.dtype) -> float:
    """``bound``, or what ``dtype`` rounds it to where that is another order of magnitude."""
    import torch

    limits = torch.finfo(dtype)
    if abs(bound) <= limits.max or math.isinf(bound):
        return bound
    # Half a unit beyond the largest number lies what is rounded to infinity.
    beyond = math.ldexp(1 - limits.eps / 4, math.frexp(limits.max)[1])
    return math.copysign(limits.max if abs(bound) < beyond else math.inf, bound)


def _clamp_reference(z: torch.Tensor, lo: Any, hi: Any) -> torch.Tensor:
    import torch

    return torch.clamp(z, *bounds_in(z, lo, hi))


def _gelu_reference(z: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.gelu(z)


def _gelu_tanh_reference(z: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.gelu(z, approximate="tanh")


# Where the reciprocal of a divisor is exact, or 16 bits are to be computed accurately, simplify.py
# makes `mul` of a `div`.
STAGES: dict[str, Stage] = {
    row.name: row
    for row in (
        Stage("mul", 1, 1, lambda z, c: z * c, lambda z, c: z * c),
        Stage("div", 1, 2, lambda z, c: z / c, lambda z, c: z / c),
        Stage("clamp", 2, 3, _clamp_formula, _clamp_reference),
        Stage("gelu", 0, 4, _gelu_formula, _gelu_reference),
        Stage("gelu_tanh", 0, 5, _gelu_tanh_formula, _gelu_tanh_reference),
    )
}
