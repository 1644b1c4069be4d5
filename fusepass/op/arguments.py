"""What the ops ask of their arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..ir import Z1, DType, Epilogue, Input
from ..ir.operands import places, varied
from ..kernels.calls import MAX_WEIGHTS

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NUMERICS = ("accurate", "bitwise")


def _check(condition: bool | torch.SymBool, message: Callable[[], str]) -> None:
    torch._check_value(condition, message)


# --- linear and linear_with_preact ----------------------------------------------------------------


def check_arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epilogue: str,
    operands: Sequence[Tensor],
    numerics: str,
) -> Epilogue:
    """Returns the parsed epilogue, of z and scalars, with one output.

    Raises:
        ValueError: naming the argument that is wrong and what it must be.
    """
    op, parsed = "fusepass::linear", Epilogue.parse(epilogue)
    other = [str(i) for i in parsed.inputs if i.kind not in ("z", "$")]
    _check(
        not other,
        lambda: (
            f"{op}: epilogue '{epilogue}' reads {', '.join(other)}; it may read z and scalars, "
            "fusepass::gemm takes more"
        ),
    )
    plain = len(parsed.outputs) == 1 and not parsed.outputs[0].is_sum
    _check(
        plain and parsed.outputs[0].dtype is None,
        lambda: f"{op}: epilogue '{epilogue}' must have one output, of x's dtype and [M, N]",
    )
    _check_tensors(op, x, [("weight", weight)], [("bias", bias)])
    _check_rest(op, parsed, x, weight, operands, numerics)
    return parsed


# --- gemm -----------------------------------------------------------------------------------------


def check_gemm(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    epilogue: str,
    operands: Sequence[Tensor],
    *,
    numerics: str,
) -> Epilogue:
    """Returns the parsed epilogue.

    Raises:
        ValueError: naming the argument that is wrong and what it must be.
    """
    op, parsed = "fusepass::gemm", Epilogue.parse(epilogue)
    count = num_weights(parsed)
    _check(
        len(weights) == count,
        lambda: (
            f"{op}: epilogue '{epilogue}' reads {'z and z1' if count == 2 else 'z alone'}, so "
            f"weights must be {count}, got {len(weights)}"
        ),
    )
    _check(
        len(biases) == count,
        lambda: f"{op}: biases must be as many as weights, {count}, got {len(biases)}; pass None",
    )
    _check_tensors(op, x, _named("weights", weights), _named("biases", biases))
    _check(
        weights[0].shape[0] == weights[-1].shape[0],
        lambda: (
            f"{op}: weights must be both [N, K], got {tuple(weights[0].shape)} and "
            f"{tuple(weights[-1].shape)}"
        ),
    )
    n, head = weights[0].shape[0], parsed.heads.columns
    _check(
        head == 0 or n % head == 0,
        lambda: f"{op}: epilogue '{epilogue}' has heads of {head} columns; N is {n}",
    )
    _check_rest(op, parsed, x, weights[0], operands, numerics)
    return parsed


def num_weights(epilogue: Epilogue) -> int:
    """How many weights ``gemm`` takes: two if the epilogue reads z1."""
    return 2 if Z1 in epilogue.inputs else 1


# --- linears --------------------------------------------------------------------------------------


def check_linears(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
    """
    Raises:
        ValueError: naming the argument that is wrong and what it must be.
    """
    op, count = "fusepass::linears", len(weights)
    _check(
        1 <= count <= MAX_WEIGHTS,
        lambda: f"{op}: weights must be one to {MAX_WEIGHTS}, got {count}",
    )
    _check(
        len(biases) == count,
        lambda: f"{op}: biases must be as many as weights, {count}, got {len(biases)}; pass None",
    )
    _check_tensors(op, x, _named("weights", weights), _named("biases", biases))


# --- all -----------------------------------------------------------------------------------------

_Named = Sequence[tuple[str, "Tensor | None"]]


def _named(name: str, tensors: Sequence[Tensor | None]) -> _Named:
    return [(f"{name}[{i}]", t) for i, t in enumerate(tensors)]


def _check_tensors(op: str, x: Tensor, weights: _Named, biases: _Named) -> None:
    _check(
        x.dtype in DTYPES,
        lambda: f"{op}: x must be float32, float16, bfloat16 or float64, got {x.dtype}",
    )
    _check(x.dim() >= 1, lambda: f"{op}: x must be [..., K], got a scalar tensor")
    for (name, weight), (bias_name, bias) in zip(weights, biases, strict=True):
        assert weight is not None
        _check_weight(op, name, weight, x)
        if bias is not None:
            _check_like(op, bias_name, bias, x)
            n = weight.shape[0]
            _check(
                bias.dim() == 1 and bias.shape[0] == n,
                lambda: f"{op}: {bias_name} must be [{n}], got {tuple(bias.shape)}",  # noqa: B023
            )


def _check_weight(op: str, name: str, weight: Tensor, x: Tensor) -> None:
    _check(
        weight.dim() == 2,
        lambda: f"{op}: {name} must be [N, K], got shape {tuple(weight.shape)}",
    )
    _check(
        weight.shape[1] == x.shape[-1],
        lambda: (
            f"{op}: x is {tuple(x.shape)}, so {name} must be [N, {x.shape[-1]}], "
            f"got {tuple(weight.shape)}; pass {name}.t() if it is stored [K, N]"
        ),
    )
    _check_like(op, name, weight, x)


def _check_like(op: str, name: str, tensor: Tensor, x: Tensor) -> None:
    _check(
        tensor.dtype == x.dtype,
        lambda: (
            f"{op}: {name} is {tensor.dtype} and x is {x.dtype}; cast {name} with .to({x.dtype})"
        ),
    )
    _check_device(op, name, tensor, x)


def _check_device(op: str, name: str, tensor: Tensor, x: Tensor) -> None:
    _check(
        tensor.device == x.device,
        lambda: (
            f"{op}: {name} is on {tensor.device} and x on {x.device}; "
            f"move {name} with .to('{x.device}')"
        ),
    )


def _check_rest(
    op: str,
    parsed: Epilogue,
    x: Tensor,
    weight: Tensor,
    operands: Sequence[Tensor],
    numerics: str,
) -> None:
    _check(
        numerics in NUMERICS,
        lambda: f"{op}: numerics must be 'accurate' or 'bitwise', got {numerics!r}",
    )
    _check(
        len(operands) == parsed.num_operands,
        lambda: (
            f"{op}: epilogue '{parsed}' takes {parsed.num_operands} operand(s), got {len(operands)}"
        ),
    )
    for place, operand in zip(places(parsed), operands, strict=True):
        if place.kind == "$":
            _check_scalar(op, place, operand, x)
        else:
            _check_operand(op, parsed, place, operand, x, weight)


def _check_scalar(op: str, place: Input, operand: Tensor, x: Tensor) -> None:
    _check(
        operand.numel() == 1,
        lambda: f"{op}: operand {place} must have one element, got shape {tuple(operand.shape)}",
    )
    _check(
        operand.dtype in DTYPES,
        lambda: f"{op}: operand {place} must be floating point, got {operand.dtype}",
    )
    _check(
        operand.device == x.device or operand.device.type == "cpu",
        lambda: (
            f"{op}: operand {place} is on {operand.device}; it must be on x's device {x.device} "
            "or on the CPU"
        ),
    )


def _check_operand(
    op: str, parsed: Epilogue, place: Input, operand: Tensor, x: Tensor, weight: Tensor
) -> None:
    name, n = f"operand {place.kind}{place.index}", weight.shape[0]
    rows = x.shape[:-1]
    head = parsed.heads.columns if place.kind == "mat" else 0
    last = _columns_of(operand, n, head) if head else n
    shape = {"col": (n,), "row": (*rows, 1), "mat": (*rows, last)}[place.kind]
    wanted, given = (tuple(map(str, s)) for s in (shape, operand.shape))
    if place.kind == "col" and operand.dim() > 1:
        first = varied(operand.shape[:-1])
        shape = (*rows[:first], *[1] * (len(rows) - first), n)
    fits = operand.dim() == len(shape)
    remedy = {
        "col": "a number a column, or, for groups of rows, behind x's first sizes and then ones",
        "row": "a number a row: unsqueeze(-1) and expand",
        "mat": "like the result: expand what is broadcast",
    }[place.kind]

    def message() -> str:
        return f"{op}: {name} must be [{', '.join(wanted)}], {remedy}; got [{', '.join(given)}]"

    _check(fits, message)
    for size, expected in zip(operand.shape, shape, strict=True):
        _check(size == expected, message)
    dtype = x.dtype if place.dtype is None else place.dtype.in_torch
    _check(
        operand.dtype == dtype,
        lambda: (
            f"{op}: {name} is {operand.dtype} and the epilogue reads {dtype}; cast it with "
            f".to({dtype})" + _spelling(place, operand.dtype)
        ),
    )
    _check_device(op, name, operand, x)


def _columns_of(operand: Tensor, n: int, head: int) -> int:
    """The columns of a matrix that is repeated along a result of ``n``: those of one or more heads,
    or of a part of one that is repeated in it; else n."""
    size = operand.shape[-1] if operand.dim() else n
    if not isinstance(size, int) or size <= 0 or n % size:
        return n
    return size if size % head == 0 or head % size == 0 else n


def _spelling(place: Input, dtype: torch.dtype) -> str:
    known = DType.of(dtype)
    return f" or write {Input(place.kind, place.index, known)}" if known is not None else ""
