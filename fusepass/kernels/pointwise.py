"""The pointwise kernel that follows the framework's GEMM: its program, built for a device."""

from __future__ import annotations

import math
from pathlib import Path

from ..ir import DType, Epilogue, Input, Node, Number, Ref
from ..ir.emit import emit
from ..ir.lower import lower, rounded_as_eager
from ..ir.operands import replaced
from ..ir.table import ROWS
from ..ir.types import Arg
from .build.build import build_first
from .plan.problem import device_code

_NARROW = (DType.F16, DType.BF16)
_BYTES = {DType.F16: 2, DType.BF16: 2, DType.F32: 4, DType.F64: 8}
_NARROWEST = 2  # elements in step, of a program that needs many registers


def program(epilogue: Epilogue, dtype: DType, bitwise: bool, host: int = 0) -> Epilogue:
    """The program that the kernel computes behind eager's own GEMM.

    In 16 bits ``accurate`` numerics round once, at the end. All else does what eager does: it
    divides a CUDA tensor by a number of the host by multiplying with the reciprocal, taken in
    double and then rounded to the type it computes in; ``bitwise`` rounds every operation.

    Args:
        epilogue: any.
        dtype: of z and of the result.
        bitwise: the numerics.
        host: bit i stands for an operand $i that is a tensor of the CPU. With n operands, $(n + i)
            is its reciprocal.

    Raises:
        ValueError: if there is no room for the reciprocals among the operands.
    """
    if dtype in _NARROW and not bitwise:
        return epilogue
    # float32's own texts differ from eager's in the last digit, and memory hides eager's here.
    shorter = dtype is DType.F32 and any(ROWS[node.op].fast_f32 for node in epilogue.nodes)
    if bitwise or shorter:
        epilogue = rounded_as_eager(epilogue, dtype)
    count = epilogue.count("$")
    return replaced(epilogue, lambda arg: arg, lambda node: _as_eager_divides(node, host, count))


def _as_eager_divides(node: Node, host: int, count: int) -> Node:
    if node.op != "div" or not _is_tensor(node.args[0]):
        return node
    value, divisor = node.args
    factor: Arg | None = None
    if isinstance(divisor, Number):
        factor = Number(_reciprocal(divisor.value))
    elif isinstance(divisor, Input) and divisor.kind == "$" and host >> divisor.index & 1:
        factor = Input("$", count + divisor.index)
    return node if factor is None else Node("mul", (value, factor), node.rounded)


def _is_tensor(arg: Arg) -> bool:
    return isinstance(arg, Ref) or (isinstance(arg, Input) and arg.kind != "$")


def _reciprocal(value: float) -> float:
    return 1.0 / value if value else math.copysign(math.inf, value)


def divisors(epilogue: Epilogue) -> int:
    """The operands that the epilogue divides by, as bits: for those the host's are not alike."""
    bits = 0
    for node in epilogue.nodes:
        if node.op == "div" and _is_tensor(node.args[0]):
            divisor = node.args[1]
            if isinstance(divisor, Input) and divisor.kind == "$":
                bits |= 1 << divisor.index
    return bits


def build(
    epilogue: Epilogue, dtype: DType, bitwise: bool, host: int, arch: str
) -> tuple[Path, tuple[float, ...]]:
    """The kernel of ``program(…)``, that of tiles unless it ``is_flat``, and its numbers in order.

    Raises:
        BuildError: if it cannot be built.
        ValueError: if the program is larger than a kernel takes.
    """
    computed = program(epilogue, dtype, bitwise, host & divisors(epilogue))
    site = {"FUSEPASS_DTYPE": device_code(dtype), "FUSEPASS_BITWISE": int(bitwise)}
    widths = (16 // _BYTES[dtype], _NARROWEST)
    choices = [{**site, "FUSEPASS_WIDTH": w} for w in widths]
    source = "pointwise/pointwise.cu" if is_flat(epilogue) else "pointwise/pointwise_tiles.cu"
    include = emit(computed, dtype)
    _, cubin = build_first(source, choices, arch, include, may_spill=True)
    return cubin, lower(computed, dtype).numbers


def is_flat(epilogue: Epilogue) -> bool:
    """Whether it can be computed without knowing rows and columns."""
    if epilogue.heads.columns:
        return False
    scalars = all(i.kind == "$" for i in epilogue.operands)
    return scalars and not any(o.is_sum for o in epilogue.outputs)
