"""What an epilogue's program asks of the 16-bit kernel, besides products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

from ...ir import Z1, DType, Epilogue, Output, Z
from ...ir.cost import instructions
from ...ir.lower import lower

# With more the kernel has not been run: matrices, and col and row operands together.
_MOST_MATS, _MOST_VECTORS = 2, 8
# From which K on the statements of an epilogue with such an operation stand apart (apart.py).
_APART = {"gelu_within_2": 768, "gelu_half_within_1": 768, "gelu_tanh": 1024}
# The longest function of z that is common.
_GELU = {"gelu", "gelu_half", "gelu_of_product"}
_SIZES = {DType.BOOL: 1, DType.F16: 2, DType.BF16: 2, DType.F32: 4}


@dataclass(frozen=True)
class Demand:
    """As far as the choice of a configuration depends on it.

    Attributes:
        stores: bytes of an element of each output of M x N.
        mats: bytes of an element of each operand of M x N.
        col_bytes: of all col operands, a column.
        row_bytes: of all row operands, a row.
        sums: outputs that are column sums.
        gated: whether there are two weights.
        bare: whether the program computes nothing.
        work: instructions an element, where anything but z and scalars is read or anything but a
            result and z is stored; None for the programs that the model was fitted to, whose work
            is about the same.
        group: rows that share a col operand's numbers, where not all do; else 0.
        head: columns of a head, of which one thread must have all, or 2: neighbours; else 0.
        torn: whether a head is no whole units of 8 columns, or what is exchanged of it no pairs.
        apart: from which K on statements stand apart, of z and scalars and one result; 0: never.
        gelu: whether a program of z and scalars and one result has GELU by erf, of what is not
            bounded.
    """

    stores: tuple[int, ...] = (2,)
    mats: tuple[int, ...] = ()
    col_bytes: int = 0
    row_bytes: int = 0
    sums: int = 0
    gated: bool = False
    bare: bool = False
    work: int | None = None
    group: int = 0
    head: int = 0
    torn: bool = False
    apart: int = 0
    gelu: bool = False

    @property
    def slot_bytes(self) -> int:
        """Of 16 x 8 elements: each output overwrites a matrix of its size, while there are any."""
        alone, read = Counter(self.stores), Counter(self.mats)
        return 128 * sum(self.mats) + 128 * sum((alone - read).elements())

    @property
    def traffic(self) -> int:
        """Bytes that pass through memory for an element of M x N."""
        # What is the same for each head is small, and stays in the L2 cache.
        return sum(self.stores) + (0 if self.head else sum(self.mats))

    @staticmethod
    def plain(with_preact: bool = False, bare: bool = False) -> Demand:
        """That of a program of z and scalars."""
        return _PLAIN[with_preact, bare]

    @staticmethod
    def of(
        program: Epilogue, site: DType, with_preact: bool = False, group: int = 0
    ) -> Demand | str:
        """That of ``program`` at a site of 16 bits; or why the kernel does not take it.

        Args:
            program: the epilogue.
            site: the dtype of x.
            with_preact: whether z is stored besides.
            group: as the attribute.
        """
        for refusal in (_wrong_operand(program, site), _wrong_output(program, site)):
            if refusal is not None:
                return refusal
        stores = [_SIZES[o.dtype or site] for o in program.outputs if o.kind == "store"]
        stores += [2] * with_preact
        refusal = _not_run(program, stores, site)
        if refusal is not None:
            return refusal
        plain = _is_plain(program)
        ops = _lowered(program, site) if plain and len(stores) == 1 else frozenset[str]()
        return Demand(
            stores=tuple(stores),
            mats=_sizes(program, "mat", site),
            col_bytes=sum(_sizes(program, "col", site)),
            row_bytes=sum(_sizes(program, "row", site)),
            sums=sum(o.kind == "col_sum" for o in program.outputs),
            gated=Z1 in program.inputs,
            bare=not program.nodes and len(program.outputs) == 1,
            work=None if plain else instructions(program, site),
            group=group,
            head=program.heads.columns,
            torn=not program.heads.are_pairs,
            apart=max((_APART.get(op, 0) for op in ops), default=0),
            gelu=not _GELU.isdisjoint(ops),
        )


def _lowered(program: Epilogue, site: DType) -> frozenset[str]:
    return frozenset(node.op for node in lower(program, site).nodes)


def _is_plain(program: Epilogue) -> bool:
    """Whether it is of z and scalars and stores one result, and z perhaps."""
    reads = all(i.kind == "$" for i in program.operands) and Z1 not in program.inputs
    return reads and not program.heads.columns and all(o == Output(Z) for o in program.outputs[1:])


_PLAIN = {
    (with_preact, bare): Demand(stores=(2, 2) if with_preact else (2,), bare=bare)
    for with_preact in (False, True)
    for bare in (False, True)
}

Refused = Union[str, None]


def _wrong_operand(program: Epilogue, site: DType) -> Refused:
    if program.count("mat") > _MOST_MATS:
        return f"it reads more than {_MOST_MATS} matrices"
    if program.count("col") + program.count("row") > _MOST_VECTORS:
        return f"it reads more than {_MOST_VECTORS} col and row operands"
    for operand in program.operands:
        known = (None, site, DType.F32, *[DType.BOOL] * (operand.kind == "mat"))
        if operand.kind != "$" and operand.dtype not in known:
            return f"{operand} is neither of x's dtype nor float32"
    return None


def _wrong_output(program: Epilogue, site: DType) -> Refused:
    if all(o.kind != "store" for o in program.outputs):
        return "it stores no matrix"
    if any(o.dtype not in (None, site, DType.F32) for o in program.outputs):
        return "an output is neither of x's dtype nor float32"
    return None


def _not_run(program: Epilogue, stores: Sequence[int], site: DType) -> Refused:
    """What of that which the kernel takes no device has run (benchmarks/NOTES.md)."""
    mats, sums = _sizes(program, "mat", site), any(o.is_sum for o in program.outputs)
    if sums and len(mats) > 1:
        return "columns are summed beside one matrix at most"
    if program.heads.columns:
        run = mats == (2, 2) and [*stores] == [2] and not (sums or _has_vectors(program))
        return None if run else "heads are turned beside two matrices of x's dtype, for one result"
    if len(mats) > 1 and (not {*mats} <= {1, 2} or len(stores) > 3 or {*stores} != {2}):
        return "two matrices are read, of x's dtype or bool, where such are written"
    return None


def _has_vectors(program: Epilogue) -> bool:
    return any(i.kind in ("col", "row") for i in program.operands)


def _sizes(program: Epilogue, kind: str, site: DType) -> tuple[int, ...]:
    """Bytes of one element of each operand of a kind; an unread one is of the site's dtype."""
    known = {o.index: o.dtype or site for o in program.operands if o.kind == kind}
    return tuple(_SIZES[known.get(i, site)] for i in range(program.count(kind)))
