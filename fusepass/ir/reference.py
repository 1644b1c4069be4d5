"""An epilogue evaluated with torch's own operators, in any dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Union

from .epilogue import Epilogue, Node, Output
from .table import ROWS
from .types import COMPUTED, KINDS, Z1, Arg, DType, Input, Number, Ref, Z

if TYPE_CHECKING:
    import torch

Tensors = Union["torch.Tensor", float]
Functions = Mapping[str, Callable[..., Any]]  # by the rows' names


def evaluate(
    epilogue: Epilogue,
    z: torch.Tensor,
    operands: Sequence[Tensors] = (),
    z1: torch.Tensor | None = None,
    functions: Functions | None = None,
) -> tuple[torch.Tensor, ...]:
    """The outputs of ``epilogue``; arguments and errors as ``Epilogue.reference`` has them.

    ``functions`` are what computes a row where that is not its reference; of tensors and numbers,
    as that is.

    Where the program does not say what eager rounds, every operator runs in z's dtype and rounds
    as it does there. Where it does, an operator whose arguments have the dtype it rounds to runs
    in that dtype, as eager ran it; any other in float32 (float64), and its result is rounded. In
    float64 nothing is: the exact value is asked for.
    """
    results = values(epilogue, z, operands, z1, functions)
    return tuple(map(partial(_written, z), epilogue.outputs, results))


def values(
    epilogue: Epilogue,
    z: torch.Tensor,
    operands: Sequence[Tensors] = (),
    z1: torch.Tensor | None = None,
    functions: Functions | None = None,
) -> list[Any]:
    """What ``evaluate`` writes as it is computed: of any shape that broadcasts with z's, unsummed,
    a condition as torch.bool."""
    return _run(epilogue, _bind(epilogue, z, operands, z1), z.dtype, functions or {})


def _run(
    epilogue: Epilogue, inputs: dict[Input, Tensors], dtype: torch.dtype, functions: Functions
) -> list[Any]:
    """The outputs' values as they are computed, of the shapes that broadcasting gives."""
    marked = any(node.rounded is not None for node in epilogue.nodes)
    rounding = marked and DType.of(dtype) is not DType.F64
    values: list[Any] = []

    def resolve(arg: Arg) -> Any:
        if isinstance(arg, Ref):
            return values[arg.index]
        return arg.value if isinstance(arg, Number) else inputs[arg]

    for node in epilogue.nodes:
        args = _arguments(node, [resolve(a) for a in node.args], dtype)
        values.append(
            _rounded(node, args, functions) if rounding else _call(node.op, args, functions)
        )
    return [resolve(o.value) for o in epilogue.outputs]


def _bind(
    epilogue: Epilogue, z: torch.Tensor, operands: Sequence[Tensors], z1: torch.Tensor | None
) -> dict[Input, Tensors]:
    if len(operands) != epilogue.num_operands:
        raise ValueError(
            f"epilogue {epilogue}: takes {epilogue.num_operands} operand(s), got {len(operands)}"
        )
    if (z1 is not None) != (Z1 in epilogue.inputs):
        wrong = "reads no z1" if z1 is not None else "needs z1"
        raise ValueError(f"epilogue {epilogue}: {wrong}")
    places = [(k, i) for k in KINDS if k not in COMPUTED for i in range(epilogue.count(k))]
    given = dict(zip(places, operands, strict=True))
    bound: dict[Input, Tensors] = {i: given[i.kind, i.index] for i in epilogue.operands}
    bound[Z] = z
    if z1 is not None:
        bound[Z1] = z1
    for place in epilogue.inputs:
        if place.kind == "rot":
            bound[place] = rotated(z, place.index, place.head)
        elif place.kind == "first":
            bound[place] = first_of_heads(z, place.index, place.head)
    if epilogue.heads.columns:
        bound.update({i: by_heads(v, z) for i, v in bound.items() if i.kind == "mat"})
    return bound


def rotated(z: torch.Tensor, columns: int, head: int = 0) -> torch.Tensor:
    """z, [..., N], with the halves of the first ``columns`` of each ``head``, or of each
    ``columns``, exchanged and the first one negated."""
    import torch

    heads = z.unflatten(-1, (-1, head or columns))
    first, second = heads[..., :columns].chunk(2, -1)
    return torch.cat([-second, first, heads[..., columns:]], -1).flatten(-2)


def first_of_heads(z: torch.Tensor, columns: int, head: int) -> torch.Tensor:
    """Whether each of z's elements, [..., N], is of the first ``columns`` of ``head``."""
    import torch

    return (torch.arange(z.shape[-1], device=z.device) % head < columns).expand(z.shape)


def by_heads(mat: Any, z: torch.Tensor) -> torch.Tensor:
    """A matrix of one head's columns, [..., D], as one of z's, the same for each head."""
    result: torch.Tensor = mat
    if result.shape[-1] == z.shape[-1]:
        return result
    heads = z.shape[-1] // result.shape[-1]
    return result.unsqueeze(-2).expand(*result.shape[:-1], heads, -1).flatten(-2)


def _call(op: str, args: Sequence[Any], functions: Functions) -> Any:
    import torch

    row, first = ROWS[op], args[0]
    tensors = [a for a in args[1:] if isinstance(a, torch.Tensor)]
    if row.is_macro and tensors:
        # torch's own activations take a tensor and numbers only.
        if not isinstance(first, torch.Tensor):
            first = torch.full_like(tensors[0], first)
        bound = {Z: first, **{Input("$", i): a for i, a in enumerate(args[1:])}}
        return _run(Epilogue.parse(row.expansion), bound, first.dtype, functions)[0]
    return functions.get(op, row.reference)(*args)


def _arguments(node: Node, args: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    """A value where a condition is asked for is whether it is not 0; a condition is 0 or 1."""
    import torch

    def exchanged(arg: Any, parameter: str) -> Any:
        condition = isinstance(arg, torch.Tensor) and arg.dtype is torch.bool
        if condition == (parameter == "b"):
            return arg
        return arg.to(dtype) if condition else arg != 0

    return list(map(exchanged, args, ROWS[node.op].parameters))


def _rounded(node: Node, args: Sequence[Any], functions: Functions) -> Any:
    import torch

    floating = [isinstance(a, torch.Tensor) and a.dtype.is_floating_point for a in args]
    dtypes = {a.dtype for a, real in zip(args, floating, strict=True) if real and a.dim()}
    wanted = node.rounded.in_torch if node.rounded is not None else None
    if wanted is not None and dtypes <= {wanted}:
        return _call(node.op, args, functions).to(wanted)
    wide = torch.float64 if torch.float64 in dtypes else torch.float32
    widened = [a.to(wide) if real else a for a, real in zip(args, floating, strict=True)]
    result = _call(node.op, widened, functions)
    return result if wanted is None else result.to(wanted)


def _written(z: torch.Tensor, output: Output, value: Any) -> torch.Tensor:
    dtype = output.dtype.in_torch if output.dtype is not None else z.dtype
    result: torch.Tensor = value
    if result.shape != z.shape:
        result = result.expand(z.shape)
    rows = tuple(range(z.dim() - 1))
    if output.kind == "col_sum" and rows:  # no dimensions would be all of them
        result = result.sum(dim=rows)
    return result.to(dtype)
