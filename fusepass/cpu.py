"""The op composed of ATen calls: what the CPU runs, and what any device without a kernel runs.

``bitwise`` is eager's own sequence of operators over whole tensors. ``accurate`` runs the same
stages over blocks small enough that temporaries stay in cache, in a type in which the result is
rounded once: float32 for 16-bit types, or the type itself where only its last stage rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from .epilogue import Epilogue, Operand, StageCall
from .stages import STAGES

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
# Bytes a thread works on at a time: a stage's input and output stay in L2. Smaller blocks lose
# more to starting the threads than they gain.
_BLOCK = 1 << 19


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which ``accurate`` computes the epilogue of ``dtype``."""
    return _WIDE.get(dtype, dtype)


def differentiable(
    z: Tensor, epilogue: Epilogue, scalars: Sequence[Tensor], numerics: str
) -> Tensor:
    """The epilogue of ``z`` in whole-tensor torch operators: any transform of torch goes through.

    Args:
        scalars: the operands, of shapes that broadcast with ``z``.
    """
    wide = z if numerics == "bitwise" else z.to(compute_dtype(z.dtype))
    return epilogue.reference(wide, *scalars).to(z.dtype)


def pre_activation(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """z, [..., N] contiguous; no autograd."""
    return torch.nn.functional.linear(x, weight, bias).contiguous()


def apply(z: Tensor, epilogue: Epilogue, operands: Sequence[Tensor], numerics: str) -> Tensor:
    """The epilogue of ``z``, which is contiguous and stays as it is; no autograd."""
    if numerics == "bitwise":
        return epilogue.reference(z, *(v.reshape(()) for v in operands))
    return _apply_blocks(z, torch.empty_like(z), epilogue, operands)


def apply_(z: Tensor, epilogue: Epilogue, operands: Sequence[Tensor], numerics: str) -> Tensor:
    """As ``apply``, but ``z`` is overwritten where it can be."""
    if numerics == "bitwise":
        return apply(z, epilogue, operands, numerics)
    return _apply_blocks(z, z, epilogue, operands)


def _apply_blocks(z: Tensor, out: Tensor, epilogue: Epilogue, operands: Sequence[Tensor]) -> Tensor:
    """Writes the epilogue of ``z`` to ``out`` (which may be ``z``), both contiguous; ``out``."""
    scalars = [v.reshape(()) for v in operands]
    wide = z.dtype if _rounds_once(epilogue, z.dtype) else compute_dtype(z.dtype)
    cpu = z.device.type == "cpu"
    # 1 << 62: one block. No kernel is saved by cutting up a tensor elsewhere.
    block = _BLOCK // z.element_size() * torch.get_num_threads() if cpu else 1 << 62
    blocks = zip(z.view(-1).split(block), out.view(-1).split(block), strict=True)
    room = z.new_empty(min(block, z.numel()), dtype=wide) if wide != z.dtype else None
    for source, target in blocks:
        if room is None:
            _stages(source, target, epilogue, scalars)
            continue
        result = room[: source.numel()].copy_(source)
        _stages(result, result, epilogue, scalars)
        # oneDNN's float32 GELU of +inf is NaN; eager's GELU of a 16-bit +inf need not be.
        if cpu and not math.isfinite(float(result.sum())):
            result = torch.where(result.isnan(), epilogue.reference(source, *scalars), result)
        target.copy_(result)
    return out


def _clamp(z: Tensor, *bounds: Any, out: Tensor) -> None:
    if any(isinstance(b, Tensor) for b in bounds):
        bounds = tuple(torch.as_tensor(b, dtype=z.dtype, device=z.device) for b in bounds)
    torch.clamp(z, *bounds, out=out)


# The references again, as functions that write: no memory is taken between the stages.
_WRITE: dict[str, Callable[..., Any]] = {
    "mul": torch.mul,
    "div": torch.div,
    "clamp": _clamp,
    "gelu": torch.ops.aten.gelu.out,
    "gelu_tanh": partial(torch.ops.aten.gelu.out, approximate="tanh"),
}


def _stages(z: Tensor, out: Tensor, epilogue: Epilogue, scalars: Sequence[Tensor]) -> None:
    """Writes the epilogue of ``z`` to ``out``, of the same dtype; ``out`` may be ``z``."""
    for stage in epilogue.stages:
        values = [scalars[s.index] if isinstance(s, Operand) else s for s in stage.scalars]
        write = _WRITE.get(stage.name)
        if write is None:
            out.copy_(STAGES[stage.name].reference(z, *values))
        else:
            write(z, *values, out=out)
        z = out


@lru_cache(maxsize=1024)
def _rounds_once(epilogue: Epilogue, dtype: torch.dtype) -> bool:
    """Whether every stage but the last is exact in ``dtype``."""
    return all(_exact(stage, dtype) for stage in epilogue.stages[:-1])


def _exact(stage: StageCall, dtype: torch.dtype) -> bool:
    numbers = [s for s in stage.scalars if not isinstance(s, Operand)]
    if len(numbers) != len(stage.scalars):
        return False
    if stage.name in ("mul", "div"):
        return math.frexp(abs(numbers[0]))[0] == 0.5  # a power of two
    if stage.name == "clamp":
        return all(float(torch.tensor(v, dtype=dtype)) == v for v in numbers)
    return False
