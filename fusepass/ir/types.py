"""What an epilogue reads: dtypes, numbers and inputs, as plain values."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    import torch


class DType(Enum):
    """A real dtype, by the short name it has in an epilogue's text."""

    BOOL = "bool"
    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"
    F64 = "f64"

    @property
    def in_torch(self) -> torch.dtype:
        """torch's own."""
        import torch

        dtype: torch.dtype = getattr(torch, _TORCH[self])
        return dtype

    @property
    def device(self) -> str:
        """The kernels' name for it."""
        return f"DType::{_DEVICE[self]}"

    @staticmethod
    def of(dtype: torch.dtype) -> DType | None:
        """The DType of torch's; None if an epilogue has none such (integers, complex, float8)."""
        return _FROM_TORCH.get(str(dtype).removeprefix("torch."))


_TORCH = {
    DType.BOOL: "bool",
    DType.F16: "float16",
    DType.BF16: "bfloat16",
    DType.F32: "float32",
    DType.F64: "float64",
}
_DEVICE = {
    DType.BOOL: "kBool",
    DType.F16: "kFloat16",
    DType.BF16: "kBFloat16",
    DType.F32: "kFloat32",
    DType.F64: "kFloat64",
}
_FROM_TORCH = {name: dtype for dtype, name in _TORCH.items()}

KINDS = ("z", "z1", "rot", "first", "$", "col", "row", "mat")
COMPUTED = ("z", "z1", "rot", "first")  # by the op: no operands
_INPUT = re.compile(
    r"(?:(z1?)|(rot|first)([1-9]\d*)(?:of([1-9]\d*))?|(\$|col|row|mat)(0|[1-9]\d*)(?::(\w+))?)\Z"
)


@dataclass(frozen=True)
class Input:
    """A tensor that an epilogue reads.

    Attributes:
        kind: ``z`` the pre-activation, ``z1`` that of a second GEMM of the same x, ``rot`` z with
            the halves of each head exchanged and the first of them negated, as rotary embeddings
            have it, ``$`` a scalar, ``col`` a number a column, ``row`` a number a row, ``mat`` a
            matrix like z. ``first`` is a condition: of the first columns of each head.
        index: which of its kind, from 0; ``z`` and ``z1`` are alone in theirs. Of ``rot`` the
            columns whose halves are exchanged, an even number: those of a head, or, ``rot2``,
            neighbours. Of ``first`` how many of a head's columns.
        dtype: of its elements where that is not z's. A scalar has none: it is read as it comes.
        head: of ``rot`` and ``first`` a head's columns, where it has more than these; else 0. The
            others are as in z.
    """

    kind: str
    index: int = 0
    dtype: DType | None = None
    head: int = 0

    def __post_init__(self) -> None:
        plain = self.kind in (*COMPUTED, "$")
        if self.kind not in KINDS or (plain and self.dtype is not None):
            raise ValueError(f"epilogue: no input {self.kind!r} of dtype {self.dtype}")
        if not _is_index(self.kind, self.index, self.head):
            of = f" of {self.head}" if self.head else ""
            raise ValueError(f"epilogue: no input {self.kind!r} of index {self.index}{of}")

    def __str__(self) -> str:
        if self.kind in ("z", "z1"):
            return self.kind
        dtype = f":{self.dtype.value}" if self.dtype is not None else ""
        head = f"of{self.head}" if self.head else ""
        return f"{self.kind}{self.index}{head}{dtype}"

    @property
    def is_operand(self) -> bool:
        """Whether the op is handed it, rather than computing it."""
        return self.kind not in COMPUTED

    @staticmethod
    def parse(text: str) -> Input | None:
        """The input of that text, or None if it is not one's."""
        found = _INPUT.match(text)
        if found is None:
            return None
        alone, of_heads, columns, head, kind, index, dtype = found.groups()
        if alone:
            return Input(alone)
        if of_heads:
            known = _is_index(of_heads, int(columns), int(head or 0))
            return Input(of_heads, int(columns), None, int(head or 0)) if known else None
        if dtype is not None and (kind == "$" or dtype not in (d.value for d in DType)):
            return None
        return Input(kind, int(index), DType(dtype) if dtype else None)


def _is_index(kind: str, index: int, head: int) -> bool:
    """Whether there is an input of that index, of heads of so many columns."""
    if kind == "rot":
        return index >= 2 and index % 2 == 0 and (head == 0 or head > index > 2)
    if kind == "first":
        return head > index > 0
    return head == 0 and index >= 0 and not (index and kind in ("z", "z1"))


Z, Z1 = Input("z"), Input("z1")


@dataclass(frozen=True)
class Number:
    """A constant of the program. 0.0 and -0.0 are two numbers; NaN is none.

    Raises:
        ValueError: if ``value`` is NaN or no float.
    """

    value: float = field(compare=False)
    text: str = field(init=False)

    def __post_init__(self) -> None:
        try:
            value = float(self.value)
        except OverflowError:
            raise ValueError(f"epilogue: {self.value} is beyond every float") from None
        if value != value:
            raise ValueError("epilogue: a NaN scalar; it has no text form")
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "text", repr(value))

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Ref:
    """The result of node ``index``."""

    index: int


Arg = Union[Ref, Input, Number]
