"""An epilogue as a graph of pointwise ATen operators: what Inductor makes code of.

Computed in the type that ``accurate`` names, by the operations' references and, where 16 bits are
all that is kept, by functions that cost less than theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ..ir import Z1, Builder, Epilogue, Input, Ref
from ..ir.interval import intervals
from ..ir.operands import places
from ..ir.primitives import bounds_in
from ..ir.reference import Functions, values
from . import cpu


@lru_cache(maxsize=1024)
def trace(text: str, dtype: torch.dtype, operands: tuple[torch.dtype, ...]) -> torch.fx.GraphModule:
    """The epilogue as a graph of pointwise ATen operators, for any shape of z.

    Its inputs are z, z1 if it is read, and the operands; its results each output's value, of a
    shape that broadcasts with z's, a sum's as it is computed.
    """
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    program = _bounded(Epilogue.parse(text))
    seen = [Input("z"), *([Z1] if Z1 in program.inputs else []), *places(program)]
    wide = cpu.compute_dtype(dtype)

    def widened(tensor: Tensor) -> Tensor:
        return tensor.to(wide) if tensor.dim() and tensor.is_floating_point() else tensor

    def computed(*tensors: Tensor) -> list[Tensor]:
        z, *given = map(widened, tensors)
        z1 = given.pop(0) if Z1 in seen else None
        found = values(program, z, given, z1, _BETTER[dtype])
        kept = [
            wide if o.is_sum else o.dtype.in_torch if o.dtype else dtype for o in program.outputs
        ]
        return [v.to(d) for v, d in zip(found, kept, strict=True)]

    shapes = {"$": (), "col": (3,), "row": (2, 1)}
    dtypes = (*[dtype] * (len(seen) - len(operands)), *operands)
    with _disable_current_modes(), torch.no_grad():
        inputs = [
            torch.ones(shapes.get(i.kind, (2, 3)), dtype=d)
            for i, d in zip(seen, dtypes, strict=True)
        ]
        return make_fx(computed, decomposition_table=select_decomp_table())(*inputs)


def _bounded(epilogue: Epilogue) -> Epilogue:
    """``epilogue`` with ``gelu_within_2`` where that is what a gelu is."""
    facts, builder, made = intervals(epilogue), Builder(), list[Ref]()
    for node in epilogue.nodes:
        args = [made[a.index] if isinstance(a, Ref) else a for a in node.args]
        first = node.args[0]
        within = isinstance(first, Ref) and facts[first.index].magnitude <= 2
        op = "gelu_within_2" if node.op == "gelu" and within else node.op
        made.append(builder.apply(op, *args, rounded=node.rounded))
    outputs = (
        replace(o, value=made[o.value.index]) if isinstance(o.value, Ref) else o
        for o in epilogue.outputs
    )
    return builder.finish(*outputs)


# --- functions better than the references ---------------------------------------------------------

# As in ir/macros.py, which says what it is: 2 Phi(-2t) = 2^P(t), off by 6.5e-6.
_POWER = (
    -2.298724721185863e-4, 3.888772102072835e-3, -2.9549483208848404e-2, 1.356414556503296e-1,
    -4.3113672733306885e-1, -1.8341631889343262, -2.30242919921875, -1.0,
)  # fmt: skip
# The even part of gelu(2h) - h as a polynomial in h^2, minimax on |h| <= 1: off by 1.9e-9.
_WITHIN_2 = (
    -1.040792209096253e-3, 8.348101750016212e-3, -3.6363184452056885e-2, 1.1693902313709259e-1,
    -3.0354636907577515e-1, 6.382336020469666e-1, -1.0638395547866821, 1.595768928527832,
)  # fmt: skip


def _clamp(z: Tensor, *bounds: Any) -> Tensor:
    """The reference without a bound that bounds nothing: a relu is one operation."""
    ends = zip(bounds_in(z, *bounds), (-math.inf, math.inf), strict=True)
    lo, hi = (None if not isinstance(b, Tensor) and b == end else b for b, end in ends)
    return z if lo is None and hi is None else torch.clamp(z, lo, hi)


def _polynomial(coefficients: Sequence[float], t: Tensor) -> Tensor:
    value = t * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * t + coefficient
    return value


def _gelu(z: Tensor) -> Tensor:
    """z Phi(z) without the cancellation of 1 + erf(z / sqrt(2)), at the price of erf."""
    half = [c / 2**i for i, c in enumerate(reversed(_POWER))]
    below = torch.exp2(_polynomial(half[::-1], z.abs()))  # Phi(-|z|)
    return torch.where(z < 0, below, 1 - below) * z


def _gelu_within_2(z: Tensor) -> Tensor:
    """Where a clamp has left |z| <= 2: no power, and closer than Inductor's erf."""
    half = z * 0.5
    square = half * half
    return _polynomial(_WITHIN_2, square) * square + half


_DOUBLE: Functions = {"clamp": _clamp}
_SINGLE: Functions = {**_DOUBLE, "gelu_within_2": _gelu_within_2}
_SHORT: Functions = {**_SINGLE, "gelu": _gelu, "gelu_tanh": cpu.gelu_tanh}
_BETTER: dict[torch.dtype, Functions] = {
    torch.float16: _SHORT,
    torch.bfloat16: _SHORT,
    torch.float32: _SINGLE,
    torch.float64: _DOUBLE,
}
