"""The op inside Inductor: torch's GEMM, and pointwise code that Inductor generates.

Where no kernel of ours runs a call, on a CPU or a GPU without one, an opaque call of the op could
only lose: Inductor computes an epilogue inside the next pointwise or reduction kernel, for nothing.
There the op is lowered to Inductor's own lowering of ``aten.addmm``, with all its choices, and the
operations' references, in the type that ``accurate`` names. A new operation needs nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..ir import Z1, Epilogue, Output, Z
from ..ir import outputs as of
from ..ir.table import ROWS
from ..kernels import has_fused_gemm
from ..report import log
from . import linear as _op  # noqa: F401  (defines torch.ops.fusepass)
from .lowering_program import trace

aten, prims = torch.ops.aten, torch.ops.prims

_DIVISIONS = {"div", "reciprocal"}


@cache
def register() -> None:
    """Gives Inductor the lowerings of the op's overloads; once a process.

    What they stand on is Inductor's own. Should it change, graphs call the op as it is.
    ``linear.split`` and ``linear.consuming`` have none: they are called only where a kernel of ours
    runs.
    """
    try:
        _register()
    except Exception:
        log.warning("the op has no lowering: this torch's Inductor is another", exc_info=True)


def _register() -> None:
    from torch._inductor.lowering import add_needs_realized_inputs, register_lowering

    ops = torch.ops.fusepass
    for packet in (ops.linear, ops.linear_with_preact, ops.gemm):
        for op in (packet.default, packet.constant):
            if packet is not ops.gemm:  # its operands may be computed where they are read
                add_needs_realized_inputs(op)  # as Inductor does by itself for an op it only calls
            register_lowering(op, type_promotion_kind=None)(_lowering(op))
    add_needs_realized_inputs(ops.linears.default)
    register_lowering(ops.linears.default, type_promotion_kind=None)(_lowering_of_linears())


def _lowering(op: torch._ops.OpOverload) -> Callable[..., Any]:
    from torch._inductor.lowering import fallback_handler

    call = fallback_handler(op, add_to_fallback_set=False)
    name, count = op._schema.name.removeprefix("fusepass::"), len(op._schema.returns)

    def lower(*args: Any, **kwargs: Any) -> Any:
        x, weights, biases, text, *rest = args
        operands = rest[0] if rest else []
        if kwargs.get("numerics") == "bitwise" or not _is_inductors(x, text, operands):
            lies = _computed_once if Epilogue.parse(text).heads.columns else _by_rows
            rest = [list(map(lies, operands)), *rest[1:]] if operands else rest
            return call(x, weights, biases, text, *rest, **kwargs)
        epilogue = Epilogue.parse(text)
        if name != "gemm":
            weights, biases = [weights], [biases]
            epilogue = of.with_preact(epilogue) if count == 2 else epilogue
        lowered = _lower(epilogue, x, weights, biases, operands)
        if lowered is None:
            return call(*args, **kwargs)
        return lowered if name == "gemm" else lowered[0] if count == 1 else tuple(lowered)

    return lower


def _lowering_of_linears() -> Callable[..., Any]:
    """Inductor's own products, but where one launch of ours may be all of them."""
    from torch._inductor.lowering import fallback_handler

    call = fallback_handler(torch.ops.fusepass.linears.default, add_to_fallback_set=False)

    def lower(x: Any, weights: Sequence[Any], biases: Sequence[Any]) -> Any:
        if x.get_device().type != "cpu" and has_fused_gemm(x.get_device(), x.get_dtype()):
            return call(x, weights, biases)
        return [_gemm(x, w, b) for w, b in zip(weights, biases, strict=True)]

    return lower


def _by_rows(operand: Any) -> Any:
    """An operand as kernels read it best, row after row, if it lies as Inductor chooses: of what
    it computes for this call, and perhaps for code of its own."""
    from torch._inductor.ir import ExternKernel, FlexibleLayout, StorageBox, TensorBox

    stored = isinstance(operand, TensorBox) and isinstance(operand.data, StorageBox)
    if not stored or len(operand.get_size()) < 2:
        return operand
    operand.realize()
    free = isinstance(operand.get_layout(), FlexibleLayout)
    return ExternKernel.require_contiguous(operand) if free else operand


def _computed_once(operand: Any) -> Any:
    """An operand whose memory is there, of which it may be a view: tables that all layers read."""
    from torch._inductor.ir import BaseView, TensorBox

    if isinstance(operand, TensorBox) and isinstance(operand.data, BaseView):
        operand.data.unwrap_view().realize()
    return operand


# --- whose it is --------------------------------------------------------------------------------


def _is_inductors(x: Any, text: str, operands: Sequence[Any]) -> bool:
    """Whether Inductor's own code is what should run a call with ``accurate`` numerics.

    On a GPU that has fused kernels the op decides by each call's sizes, and its pointwise kernel,
    which reads first what the GEMM wrote last, is ahead of Inductor's. Elsewhere on GPUs a scalar
    on the host and a float32 division, which Triton does not round correctly, stay with the op.
    """
    device, dtype = x.get_device(), x.get_dtype()
    if Epilogue.parse(text).heads.columns:  # what exchanges columns is no pointwise code
        return False
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


def _lower(
    epilogue: Epilogue, x: Any, weights: Sequence[Any], biases: Sequence[Any], operands: Any
) -> list[Any] | None:
    """The outputs in Inductor's terms; None if an operator has no lowering there."""
    rest, owners = of.computed(epilogue), of.taken(epilogue)
    program = None
    if rest is not None:
        program = trace(str(rest), x.get_dtype(), tuple(v.get_dtype() for v in operands))
        if not _can_lower(program):
            return None
    both = [_gemm(x, w, b) for w, b in zip(weights, biases, strict=True)]
    made: Iterator[Any] = iter(())
    if rest is not None and program is not None:
        inputs = both if Z1 in rest.inputs else both[:1]
        values = _pointwise(program, inputs, rest, operands)
        pairs = zip(rest.outputs, values, strict=True)
        made = iter([_output(output, value, both[0], inputs, operands) for output, value in pairs])
    return [next(made) if o is None else both[0] if o == Z else both[1] for o in owners]


def _output(output: Output, value: Any, z: Any, gemms: Sequence[Any], operands: Any) -> Any:
    """What an output is made of its value: of z's shape or summed, in memory of its own."""
    from torch._inductor.lowering import lowerings as inductors

    size = list(z.get_size())
    whole = len(value.get_size()) == len(size)
    whole = whole and all(a == b for a, b in zip(value.get_size(), size, strict=True))
    wide = value if whole else inductors[aten.expand.default](value, size)
    if output.is_sum:
        if len(size) > 1:
            wide = inductors[aten.sum.dim_IntList](wide, list(range(len(size) - 1)))
        dtype = output.dtype.in_torch if output.dtype is not None else z.get_dtype()
        return inductors[prims.convert_element_type.default](wide, dtype)
    given = any(value is t for t in (*gemms, *operands))
    return inductors[aten.clone.default](wide) if given or not whole else wide


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


def _pointwise(
    program: torch.fx.GraphModule, gemms: Sequence[Any], epilogue: Epilogue, operands: Sequence[Any]
) -> list[Any]:
    """The values of the outputs by their operators' lowerings, as Inductor goes through a graph."""
    from torch._inductor.ir import TensorBox
    from torch._inductor.lowering import lowerings as inductors

    count = epilogue.count("$")
    scalars = [inductors[aten.view.default](v, []) for v in operands[:count]]
    inputs = iter((*gemms, *scalars, *operands[count:]))
    values: dict[torch.fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(inputs)
        elif node.op == "get_attr":
            values[node] = _number(getattr(program, str(node.target)), gemms[0].get_device())
        elif node.op == "call_function":
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = inductors[node.target](*args, **kwargs)
            if isinstance(values[node], TensorBox):
                values[node].mark_reuse(len(node.users))
    (results,) = program.graph.output_node().args
    return [values[result] for result in results]  # type: ignore[index, union-attr]


def _number(constant: Tensor, device: torch.device) -> Any:
    """A scalar that the reference puts in a tensor of its own."""
    from torch._inductor.lowering import lowerings as inductors

    return inductors[aten.full.default]([], constant.item(), dtype=constant.dtype, device=device)
