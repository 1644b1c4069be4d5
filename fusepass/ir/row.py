"""What a row of the table is."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BF16_ERROR, F16_ERROR = 2.0**-12, 2.0**-15  # relative, of a function whose result is so rounded
F32_ERROR = 2.0**-22  # of the argument, of a function with a text of its own for float32
FLUSHED = 2.0**-126  # what float32 holds only as a subnormal may become 0
FACTOR_FLUSHED = 128 * FLUSHED  # v times a factor of which that is true, with |v| up to 128


@dataclass(frozen=True)
class Row:
    """An operation: one element of one to three arguments to one element.

    Device texts are C++ over the arguments ``a``, ``b``, ``c``: an expression, behind any number of
    lines ``name = expression``, one instruction each where that can be. ``cut`` stands alone on two
    lines of a long one: a kernel runs its three parts on different elements side by side.

    Attributes:
        name: its word in a text.
        parameters: a letter an argument: ``v`` a value, ``b`` a condition.
        reference: the very operator that eager runs, on torch tensors and numbers.
        exact: device text in ``T``, float or double: eager's operations in eager's order, each
            rounded. ``bitwise`` and float64 models use it, and float32 ones.
        expansion: of a macro, its mathematics as an epilogue's text, z and $0, $1 the arguments.
        fast: device text in float for results that are rounded to 16 bits; empty: the exact one, or
            a macro's expansion.
        fast_bf16: a cheaper one for bfloat16's 8 bits.
        fast_f32: device text in float for float32 results, off by at most 2^-22 of ``a``, as
            eager's own are; empty: the exact one.
        error: largest relative error of ``fast``, or absolute error where ``floor`` is more.
        floor: absolute error, that of results too small to matter or to be held; of a row that
            multiplies a gradient, its second argument, over that.
        result: ``v``, or ``b`` for a condition.
        commutative: whether the first two arguments may change places.
        lowered: only ever made for a device, never written or imported.
    """

    name: str
    parameters: str
    reference: Callable[..., Any]
    exact: str = ""
    expansion: str = ""
    fast: str = ""
    fast_bf16: str = ""
    fast_f32: str = ""
    error: float = F16_ERROR
    floor: float = FLUSHED
    floor_bf16: float = FLUSHED
    result: str = "v"
    commutative: bool = False
    lowered: bool = False

    @property
    def arity(self) -> int:
        """How many arguments it takes, the chain's own among them."""
        return len(self.parameters)

    @property
    def is_macro(self) -> bool:
        """Whether it stands for an expansion in primitives."""
        return bool(self.expansion)


def torch_op(name: str, **options: object) -> Callable[..., Any]:
    """torch's function of that name, a dotted path below ``torch``, called with ``options``."""

    def call(*args: Any) -> Any:
        import torch

        return operator.attrgetter(name)(torch)(*args, **options)

    return call
