"""What the op asks of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .ir import Epilogue, Output

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NUMERICS = ("accurate", "bitwise")


def _check(condition: bool | torch.SymBool, message: Callable[[], str]) -> None:
    torch._check_value(condition, message)


def check_arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epilogue: str,
    operands: Sequence[Tensor],
    numerics: str,
) -> Epilogue:
    """Returns the parsed epilogue.

    Raises:
        ValueError: naming the argument that is wrong and what it must be.
    """
    parsed = Epilogue.parse(epilogue)
    _check(
        numerics in NUMERICS,
        lambda: f"fusepass::linear: numerics must be 'accurate' or 'bitwise', got {numerics!r}",
    )
    _check_program(parsed, epilogue)
    _check_tensors(x, weight, bias)
    _check(
        len(operands) == parsed.num_operands,
        lambda: (
            f"fusepass::linear: epilogue '{epilogue}' takes {parsed.num_operands} operand(s), "
            f"got {len(operands)}"
        ),
    )
    for i, operand in enumerate(operands):
        _check_operand(i, operand, x)
    return parsed


def _check_program(parsed: Epilogue, epilogue: str) -> None:
    """The op hands a program z and scalars, and returns one result like z."""
    other = [str(i) for i in parsed.inputs if i.kind not in ("z", "$")]
    _check(
        not other,
        lambda: (
            f"fusepass::linear: epilogue '{epilogue}' reads {', '.join(other)}; it may read z and "
            "scalars"
        ),
    )
    _check(
        parsed.outputs == (Output(parsed.outputs[0].value),),
        lambda: (
            f"fusepass::linear: epilogue '{epilogue}' must have one output, of x's dtype and [M, N]"
        ),
    )


def _check_tensors(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    _check(
        x.dtype in DTYPES,
        lambda: f"fusepass::linear: x must be float32, float16, bfloat16 or float64, got {x.dtype}",
    )
    _check(x.dim() >= 1, lambda: "fusepass::linear: x must be [..., K], got a scalar tensor")
    _check(
        weight.dim() == 2,
        lambda: f"fusepass::linear: weight must be [N, K], got shape {tuple(weight.shape)}",
    )
    _check(
        weight.shape[1] == x.shape[-1],
        lambda: (
            f"fusepass::linear: x is {tuple(x.shape)}, so weight must be [N, {x.shape[-1]}], "
            f"got {tuple(weight.shape)}; pass weight.t() if it is stored [K, N]"
        ),
    )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            _check_like(name, tensor, x)
    if bias is not None:
        _check(
            bias.dim() == 1 and bias.shape[0] == weight.shape[0],
            lambda: f"fusepass::linear: bias must be [{weight.shape[0]}], got {tuple(bias.shape)}",
        )


def _check_like(name: str, tensor: Tensor, x: Tensor) -> None:
    _check(
        tensor.dtype == x.dtype,
        lambda: (
            f"fusepass::linear: {name} is {tensor.dtype} and x is {x.dtype}; "
            f"cast {name} with .to({x.dtype})"
        ),
    )
    _check(
        tensor.device == x.device,
        lambda: (
            f"fusepass::linear: {name} is on {tensor.device} and x on {x.device}; "
            f"move {name} with .to('{x.device}')"
        ),
    )


def _check_operand(index: int, operand: Tensor, x: Tensor) -> None:
    _check(
        operand.numel() == 1,
        lambda: (
            f"fusepass::linear: operand ${index} must have one element, got shape "
            f"{tuple(operand.shape)}"
        ),
    )
    _check(
        operand.dtype in DTYPES,
        lambda: f"fusepass::linear: operand ${index} must be floating point, got {operand.dtype}",
    )
    _check(
        operand.device == x.device or operand.device.type == "cpu",
        lambda: (
            f"fusepass::linear: operand ${index} is on {operand.device}; it must be on x's "
            f"device {x.device} or on the CPU"
        ),
    )
