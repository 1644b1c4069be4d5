"""What an epilogue costs a kernel: instructions an element, and bytes of memory traffic."""

from __future__ import annotations

import re

from .emit import style_of
from .epilogue import Epilogue
from .lower import lower
from .statements import body_of
from .types import DType, Input

# Instructions of a call in float, as nvcc compiles it for sm_90a without its rare slow paths; one
# that is not listed is 1. Bounds that let NaN through take two slots, so do special functions.
_CALLS = {
    "T": 0,
    "fabs": 0,
    "fabsf": 0,
    "max_nan": 2,
    "min_nan": 2,
    "exp2_approx": 2,
    "reciprocal_approx": 2,
    "rsqrt_approx": 4,
    "sqrt_approx": 4,
    "divide_approx": 8,
    "div_rn": 10,
    "sqrt_rn": 9,
    "rsqrt": 4,
    "rint": 2,
    "floor": 2,
    "ceil": 2,
    "trunc": 2,
    "exp": 8,
    "exp2": 6,
    "expm1": 16,
    "log": 18,
    "log1p": 20,
    "erf": 22,
    "erfc": 30,
    "tanh": 18,
    "sin": 24,
    "cos": 24,
    "pow": 60,
}
_CALL = re.compile(r"([A-Za-z]\w*)\(")
_OPERATOR = re.compile(r" (?:[-+*/?<>]|==|!=|<=|>=|&&|\|\|) ")
_BYTES = {DType.BOOL: 1, DType.F16: 2, DType.BF16: 2, DType.F32: 4, DType.F64: 8}


def instructions(epilogue: Epilogue, dtype: DType) -> int:
    """About how many issue slots an element takes, loads and stores apart.

    Args:
        dtype: the site's. float64 counts double.
    """
    program = lower(epilogue, dtype)
    body = body_of(program, style_of(program, dtype))
    slots = 0
    for statement in body.statements:
        slots += sum(_CALLS.get(name, 1) for name in _CALL.findall(statement.expression))
        slots += len(_OPERATOR.findall(statement.expression))
    return slots * (2 if dtype is DType.F64 else 1)


def traffic(epilogue: Epilogue, dtype: DType, m: int, n: int) -> int:
    """Bytes that the epilogue of an M×N site reads and writes; z and z1 are in registers.

    Args:
        dtype: of z, and of what has no dtype of its own.
    """
    elements = {"$": 1, "col": n, "row": m, "mat": m * n}
    read = sum(_size(i, dtype) * elements[i.kind] for i in epilogue.operands)
    written = 0
    for output in epilogue.outputs:
        size = _BYTES[output.dtype or dtype]
        written += size * (n if output.kind == "col_sum" else m * n)
    return read + written


def _size(operand: Input, dtype: DType) -> int:
    return _BYTES[operand.dtype or dtype]
