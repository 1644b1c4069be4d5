"""What an epilogue's program asks of the 16-bit kernel, besides products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from ..ir import Z1, DType, Epilogue

_MOST = {"mat": 4, "col": 4, "row": 4}  # gemm_sm90_args.h
_SIZES = {DType.F16: 2, DType.BF16: 2, DType.F32: 4}


@dataclass(frozen=True)
class Demand:
    """As far as the choice of a configuration depends on it.

    Attributes:
        stores: outputs of M x N.
        mats: operands of M x N.
        col_bytes: of all col operands, a column.
        row_bytes: of all row operands, a row.
        sums: outputs that are column sums.
        gated: whether there are two weights.
        bare: whether the program computes nothing.
    """

    stores: int = 1
    mats: int = 0
    col_bytes: int = 0
    row_bytes: int = 0
    sums: int = 0
    gated: bool = False
    bare: bool = False

    @property
    def slot_buffers(self) -> int:
        """Buffers of a chunk: what is stored overwrites what is read."""
        return max(self.stores, self.mats)

    @property
    def matrices(self) -> int:
        """Matrices of M x N that pass through memory."""
        return self.stores + self.mats

    @staticmethod
    def plain(with_preact: bool = False, bare: bool = False) -> Demand:
        """That of a program of z and scalars."""
        return _PLAIN[with_preact, bare]

    @staticmethod
    def of(program: Epilogue, site: DType, with_preact: bool = False) -> Demand | str:
        """That of ``program`` at a site of 16 bits; or why the kernel does not take it.

        Args:
            program: the epilogue.
            site: the dtype of x.
            with_preact: whether z is stored besides.
        """
        for refusal in (_wrong_operand(program, site), _wrong_output(program, site)):
            if refusal is not None:
                return refusal
        stores = sum(o.kind == "store" for o in program.outputs) + with_preact
        return Demand(
            stores=stores,
            mats=program.count("mat"),
            col_bytes=_bytes(program, "col", site),
            row_bytes=_bytes(program, "row", site),
            sums=sum(o.kind == "col_sum" for o in program.outputs),
            gated=Z1 in program.inputs,
            bare=not program.nodes and len(program.outputs) == 1,
        )


_PLAIN = {
    (with_preact, bare): Demand(stores=1 + with_preact, bare=bare)
    for with_preact in (False, True)
    for bare in (False, True)
}

Refused = Union[str, None]


def _wrong_operand(program: Epilogue, site: DType) -> Refused:
    for kind, most in _MOST.items():
        if program.count(kind) > most:
            return f"it reads more than {most} operands {kind}"
    for operand in program.operands:
        dtype = operand.dtype or site
        if operand.kind == "mat" and dtype is not site:
            return f"{operand} is not of x's dtype"
        if operand.kind in ("col", "row") and dtype not in (site, DType.F32):
            return f"{operand} is neither of x's dtype nor float32"
    return None


def _wrong_output(program: Epilogue, site: DType) -> Refused:
    stores = [o for o in program.outputs if o.kind == "store"]
    if not stores:
        return "it stores no matrix"
    if any(o.dtype not in (None, site) for o in stores):
        return "it stores a matrix that is not of x's dtype"
    if any(o.dtype not in (None, site, DType.F32) for o in program.outputs):
        return "it sums to a dtype that is neither x's nor float32"
    return None


def _bytes(program: Epilogue, kind: str, site: DType) -> int:
    """Bytes of one element of each operand of a kind; an unread one is of the site's dtype."""
    known = {o.index: o.dtype or site for o in program.operands if o.kind == kind}
    return sum(_SIZES[known.get(i, site)] for i in range(program.count(kind)))
