"""The op inside Inductor: torch's GEMM, and pointwise code that Inductor generates.

Where no kernel of ours runs a call, on a CPU or a GPU without one, an opaque call of the op could
only lose: Inductor computes an epilogue inside the next pointwise or reduction kernel, for nothing.
There the op is lowered to Inductor's own lowering of ``aten.addmm``, with all its choices, and the
operations' references, in the type that ``accurate`` names. A new operation needs nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import cpu
from . import op as _op  # noqa: F401  (defines torch.ops.fusepass)
from .ir import Builder, Epilogue, Ref
from .ir.interval import intervals
from .ir.primitives import bounds_in
from .ir.reference import Functions, evaluate
from .ir.table import ROWS
from .kernels import has_fused_gemm
from .report import log

aten = torch.ops.aten

_DIVISIONS = {"div", "reciprocal"}


@cache
def register() -> None:
    """Gives Inductor the lowerings of the op's overloads; once a process.

    What they stand on is Inductor's own. Should it change, graphs call the op as it is.
    ``linear.split`` has no lowering: it is called only where a kernel of ours runs.
    """
    try:
        _register()
    except Exception:
        log.warning("the op has no lowering: this torch's Inductor is another", exc_info=True)


def _register() -> None:
    from torch._inductor.lowering import add_needs_realized_inputs, register_lowering

    for packet in (torch.ops.fusepass.linear, torch.ops.fusepass.linear_with_preact):
        for op in (packet.default, packet.constant):
            add_needs_realized_inputs(op)  # as Inductor does by itself for an op it only calls
            register_lowering(op, type_promotion_kind=None)(_lowering(op))


def _lowering(op: torch._ops.OpOverload) -> Callable[..., Any]:
    from torch._inductor.lowering import clone, fallback_handler

    call = fallback_handler(op, add_to_fallback_set=False)
    with_preact = len(op._schema.returns) == 2

    def lower(*args: Any, **kwargs: Any) -> Any:
        x, weight, bias, text, *rest = args
        operands = rest[0] if rest else []
        if kwargs.get("numerics") == "bitwise" or not _is_inductors(x, text, operands):
            return call(*args, **kwargs)
        program = _trace(text, x.get_dtype(), tuple(v.get_dtype() for v in operands))
        if not _can_lower(program):
            return call(*args, **kwargs)
        z = _gemm(x, weight, bias)
        # Two outputs share no memory.
        out = clone(z) if with_preact and not text else _pointwise(program, z, operands)
        return (out, z) if with_preact else out

    return lower


# --- whose it is --------------------------------------------------------------------------------


def _is_inductors(x: Any, text: str, operands: Sequence[Any]) -> bool:
    """Whether Inductor's own code is what should run a call with ``accurate`` numerics.

    On a GPU that has fused kernels the op decides by each call's sizes, and its pointwise kernel,
    which reads first what the GEMM wrote last, is ahead of Inductor's. Elsewhere on GPUs a scalar
    on the host and a float32 division, which Triton does not round correctly, stay with the op.
    """
    device, dtype = x.get_device(), x.get_dtype()
    if device.type == "cpu":
        return True
    if has_fused_gemm(device, dtype) or any(v.get_device() != device for v in operands):
        return False
    return dtype != torch.float32 or not _divides(Epilogue.parse(text))


def _divides(epilogue: Epilogue) -> bool:
    ops = {node.op for node in epilogue.nodes}
    expansions = (ROWS[op].expansion for op in ops if ROWS[op].is_macro)
    return not ops.isdisjoint(_DIVISIONS) or any(_divides(Epilogue.parse(e)) for e in expansions)


# --- what it becomes ----------------------------------------------------------------------------


def _gemm(x: Any, weight: Any, bias: Any) -> Any:
    """z, of shape [..., N], by the lowering that the graph's own GEMM would have had."""
    from torch._inductor.lowering import lowerings as inductors

    *rows, k = x.get_size()
    n = weight.get_size()[0]
    if len(rows) != 1:
        x = inductors[aten.view.default](x, [math.prod(rows), k])
    kn = inductors[aten.permute.default](weight, [1, 0])
    if bias is None:
        z = inductors[aten.mm.default](x, kn)
    else:
        z = inductors[aten.addmm.default](bias, x, kn)
    return z if len(rows) == 1 else inductors[aten.view.default](z, [*rows, n])


def _can_lower(program: torch.fx.GraphModule) -> bool:
    from torch._inductor.lowering import lowerings as inductors

    return all(n.target in inductors for n in program.graph.nodes if n.op == "call_function")


def _pointwise(program: torch.fx.GraphModule, z: Any, operands: Sequence[Any]) -> Any:
    """The epilogue of ``z`` by the lowerings of its operators, as Inductor goes through a graph."""
    from torch._inductor.ir import TensorBox
    from torch._inductor.lowering import lowerings as inductors

    inputs = iter((z, *(inductors[aten.view.default](v, []) for v in operands)))
    values: dict[torch.fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(inputs)
        elif node.op == "get_attr":
            values[node] = _number(getattr(program, str(node.target)), z.get_device())
        elif node.op == "call_function":
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = inductors[node.target](*args, **kwargs)
            if isinstance(values[node], TensorBox):
                values[node].mark_reuse(len(node.users))
    (result,) = program.graph.output_node().args
    return values[result]  # type: ignore[index]


def _number(constant: Tensor, device: torch.device) -> Any:
    """A scalar that the reference puts in a tensor of its own."""
    from torch._inductor.lowering import lowerings as inductors

    return inductors[aten.full.default]([], constant.item(), dtype=constant.dtype, device=device)


@lru_cache(maxsize=1024)
def _trace(
    text: str, dtype: torch.dtype, operands: tuple[torch.dtype, ...]
) -> torch.fx.GraphModule:
    """The epilogue as a graph of pointwise ATen operators, for any shape of z."""
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    program = _bounded(Epilogue.parse(text))

    def computed(z: Tensor, *scalars: Tensor) -> Tensor:
        wide = z.to(cpu.compute_dtype(dtype))
        return evaluate(program, wide, scalars, functions=_BETTER[dtype])[0].to(dtype)

    with _disable_current_modes(), torch.no_grad():
        inputs = [torch.ones(2, 3, dtype=dtype), *(torch.ones((), dtype=d) for d in operands)]
        return make_fx(computed, decomposition_table=select_decomp_table())(*inputs)


def _bounded(epilogue: Epilogue) -> Epilogue:
    """``epilogue`` with ``gelu_within_2`` where that is what a gelu is."""
    facts, builder, values = intervals(epilogue), Builder(), list[Ref]()
    for node in epilogue.nodes:
        args = [values[a.index] if isinstance(a, Ref) else a for a in node.args]
        first = node.args[0]
        within = isinstance(first, Ref) and facts[first.index].magnitude <= 2
        op = "gelu_within_2" if node.op == "gelu" and within else node.op
        values.append(builder.apply(op, *args, rounded=node.rounded))
    (output,) = epilogue.outputs
    return builder.finish(values[-1] if isinstance(output.value, Ref) else output.value)


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
