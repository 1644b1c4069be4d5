"""Programs of the general op, each beside the torch code that it is, and tensors for a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusepass import Epilogue
from fusepass.ir import DType
from fusepass.ir.operands import places
from fusepass.op.arguments import DTYPES, num_weights

F = torch.nn.functional
Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Case:
    """A program, and what a model would write for it.

    Attributes:
        text: the program's.
        model: from z, z1 (z again if the program reads none) and the operands to the outputs; a
            ``col_sum`` is ``sum(rows)`` of a value like z.
    """

    text: str
    model: Callable[..., Outputs]

    @property
    def epilogue(self) -> Epilogue:
        return Epilogue.parse(self.text)

    @property
    def weights(self) -> int:
        return num_weights(self.epilogue)


def rows(value: Tensor, dtype: torch.dtype = torch.float16) -> Tensor:
    """The sums over all dimensions but the last, of ``dtype`` if that is the wider one."""
    dtype = value.dtype if value.dtype.itemsize >= dtype.itemsize else dtype
    dimensions = tuple(range(value.dim() - 1))
    return value.sum(dimensions, dtype=dtype) if dimensions else value


CASES = (
    Case("", lambda z, z1: [z]),
    Case("add(mat0)", lambda z, z1, m: [z + m]),
    Case("mul(col0) add(mat0)", lambda z, z1, c, m: [z * c + m]),
    Case("mul(row0:f32)", lambda z, z1, r: [z * r]),
    Case("add(mat0) gelu", lambda z, z1, m: [F.gelu(z + m)]),
    Case("mul($0) add(mat0:f32)", lambda z, z1, s, m: [z * s + m]),
    Case("add(mat0) add(mat1)", lambda z, z1, a, b: [a + z + b]),
    Case("silu mul(z1)", lambda z, z1: [F.silu(z) * z1]),
    Case("gelu_tanh mul(z1) add(mat0)", lambda z, z1, m: [F.gelu(z, approximate="tanh") * z1 + m]),
    Case(
        "clamp(0.0, inf) where(mat0:bool, _, 0.0)",
        lambda z, z1, m: [torch.where(m, F.relu(z), torch.zeros((), dtype=z.dtype))],
    ),
    Case("mul(mat0:bool) div(0.9)", lambda z, z1, m: [z * m / 0.9]),
    Case("gelu, tanh", lambda z, z1: [F.gelu(z), torch.tanh(z)]),
    Case("v0 = tanh; v0, v0 add(z)", lambda z, z1: [torch.tanh(z), torch.tanh(z) + z]),
    Case("gelu, z", lambda z, z1: [F.gelu(z), z]),
    Case("z, z1, mul(z1)", lambda z, z1: [z, z1, z * z1]),
    Case("gt(0.0) store:bool, abs", lambda z, z1: [z > 0, z.abs()]),
    Case("mul(0.5), store:f32", lambda z, z1: [z * 0.5, z]),
    Case("mul(mat0), mul(mat0) col_sum", lambda z, z1, m: [z * m, rows(z * m)]),
    Case("abs col_sum:f32", lambda z, z1: [rows(z.abs(), torch.float32)]),
    Case("col0 square col_sum", lambda z, z1, c: [rows((c * c).expand_as(z))]),
    Case(
        "v0 = mul(row0:f32) add(col0); v0 sigmoid mul(mat0), v0 col_sum:f32, v0 store:f64, mat0",
        lambda z, z1, c, r, m: [
            torch.sigmoid(z * r + c) * m,
            rows(z * r + c),
            z * r + c,
            m,
        ],
    ),
)


# How a tensor lies in memory; each gives the same numbers in the same shape.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t.clone(),
    "strided": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "row-strided": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "offset": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
    "outer-strided": lambda t: torch.stack([t, t], 1)[:, 0] if t.dim() > 1 else t.clone(),
}


def operands(
    epilogue: Epilogue,
    leading: Sequence[int],
    n: int,
    dtype: torch.dtype,
    layout: str = "contiguous",
    device: str = "cpu",
) -> list[Tensor]:
    """Random ones; those with rows lie as ``layout`` says, or are ``expanded``.

    ``expanded``: mats from [1, ..., 1, N] (over all the rows but the last dimension's: [B, 1, N])
    and rows from one element; and cols are other numbers for each group of rows, [B, 1, N], the
    next one's of each group of these: [B, C, 1, N].
    """
    shapes = {"$": (), "col": (n,), "row": (*leading, 1), "mat": (*leading, n)}
    found = []
    for place in places(epilogue):
        shape, wanted = shapes[place.kind], place.dtype.in_torch if place.dtype else dtype
        if layout == "expanded" and place.kind == "col" and len(leading) > 1:
            first = place.index % (len(leading) - 1) + 1
            shape = (*leading[:first], *[1] * (len(leading) - first), n)
        small = list(shape)
        if layout == "expanded" and place.kind in ("row", "mat"):
            small[-2:-1] = [1] * len(small[-2:-1])
        value = torch.randn(small, device=device).to(torch.float64)
        value = value > 0 if wanted == torch.bool else value.to(wanted)
        if layout in LAYOUTS and place.kind in ("row", "mat"):
            value = LAYOUTS[layout](value)
        if value.dim() > 1 and place.kind == "col":  # as a part of a product that makes several
            value = LAYOUTS["row-strided"](value)
        found.append(value.expand(shape))
    return found


def problem(
    weights: int,
    dtype: torch.dtype,
    leading: Sequence[int] = (3, 11),
    k: int = 21,
    n: int = 19,
    device: str = "cpu",
) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    """x [..., K], weights of about unit results, and a bias of the first weight alone."""
    x = torch.randn(*leading, k, device=device).to(dtype)
    ws = [(torch.randn(n, k, device=device) / k**0.5).to(dtype) for _ in range(weights)]
    return x, ws, [torch.randn(n, device=device).to(dtype), None][:weights]


def exactly(case: Case, x: Tensor, ws: Any, bs: Any, given: list[Tensor]) -> list[Tensor]:
    """What the model computes in float64."""
    wide = [None if b is None else b.double() for b in bs]
    zs = [F.linear(x.double(), w.double(), b) for w, b in zip(ws, wide, strict=True)]
    operands = [t if t.dtype == torch.bool else t.double() for t in given]
    return list(case.model(zs[0], zs[-1], *operands))


def case_id(value: object) -> str:
    """How a case, or what goes with it, is called among the tests."""
    return value.text or "z" if isinstance(value, Case) else str(value)


def bitwise_cases() -> Iterator[tuple[Case, torch.dtype]]:
    """Each case with the dtypes of z in which eager rounds every value alike: those of operands of
    another dtype, which a program must tell of by rounding marks, are none."""
    for case in CASES:
        given = {i.dtype for i in case.epilogue.operands} - {None, DType.BOOL}
        yield from ((case, dtype) for dtype in DTYPES if given <= {DType.of(dtype)})


def eagerly(case: Case, x: Tensor, ws: Any, bs: Any, given: list[Tensor]) -> list[Tensor]:
    """What the model computes in x's dtype and the operands'."""
    zs = [F.linear(x, w, b) for w, b in zip(ws, bs, strict=True)]
    return list(case.model(zs[0], zs[-1], *given))
