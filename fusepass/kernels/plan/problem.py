"""What a kernel is planned for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...ir import Z1, DType, Epilogue
from ...ir.emit import build_key, emit
from ..calls import Call

# gemm.h's DType, and one more: float32 that may be rounded to TF32.
FLOAT32, FLOAT16, BFLOAT16, FLOAT64, TF32 = range(5)
_CODES = {
    torch.float32: FLOAT32,
    torch.float16: FLOAT16,
    torch.bfloat16: BFLOAT16,
    torch.float64: FLOAT64,
}
_IR = {
    FLOAT32: DType.F32,
    FLOAT16: DType.F16,
    BFLOAT16: DType.BF16,
    FLOAT64: DType.F64,
    TF32: DType.F32,
}
# gemm.h's DType of what an epilogue reads and writes.
_DEVICE = {DType.F32: 0, DType.F16: 1, DType.BF16: 2, DType.F64: 3, DType.BOOL: 4}


@dataclass(frozen=True)
class Problem:
    """A GEMM and its epilogue, as far as the choice of a kernel depends on them.

    Attributes:
        epilogue: its text.
        dtype: one of the codes above.
        m, n, k: of x [m, k] and w [n, k].
        w_is_kn: whether w is stored [k, n].
        with_preact: whether z is wanted too.
        x_is_km: whether x is stored [k, m].
        group: rows of the smallest group that has a col operand's numbers of its own, or 0.
        biased: of a product alone, whether a bias is added.
    """

    epilogue: str
    dtype: int
    m: int
    n: int
    k: int
    w_is_kn: bool
    with_preact: bool
    x_is_km: bool = False
    group: int = 0
    biased: bool = False

    @property
    def bare(self) -> bool:
        """Whether the epilogue is empty."""
        return not self.epilogue

    @property
    def program(self) -> Epilogue:
        """The epilogue."""
        return Epilogue.parse(self.epilogue)

    @property
    def gated(self) -> bool:
        """Whether there is a second weight, whose product the epilogue reads."""
        return Z1 in self.program.inputs

    @property
    def include(self) -> str:
        """What a kernel that runs the epilogue is compiled with."""
        return emit(self.program, ir_dtype(self.dtype))

    @property
    def key(self) -> str:
        """The epilogue as a build depends on it: without its numbers."""
        return build_key(self.program, ir_dtype(self.dtype))

    @staticmethod
    def of(call: Call) -> Problem:
        """The problem that ``call`` is at torch's present float32 precision."""
        code = plan_code(call.dtype)
        sizes = (call.m, call.n, call.k)
        flags = (call.w_is_kn, call.with_preact, call.x_is_km)
        return Problem(call.epilogue, code, *sizes, *flags, call.group, call.is_biased)


def plan_code(dtype: torch.dtype) -> int:
    """The code of ``dtype`` at torch's present float32 precision, as the binding works it out."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return TF32
    return _CODES[dtype]


def device_code(dtype: DType) -> int:
    """gemm.h's DType of ``dtype``."""
    return _DEVICE[dtype]


def ir_dtype(code: int) -> DType:
    """The dtype in which an epilogue's program is lowered for a plan of ``code``."""
    return _IR[code]
