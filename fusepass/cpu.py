"""The op composed of ATen calls: what the CPU runs, and what any device without a kernel runs.

``bitwise`` is eager's own sequence of operators over whole tensors. ``accurate`` runs the stages
over blocks small enough that temporaries stay in cache, in a type in which the result is rounded
once: float32 for 16-bit types, or the type itself where only its last stage rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .epilogue import Epilogue, Operand, StageCall
from .stages import STAGES, bounds_in

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
    if numerics == "bitwise":
        return epilogue.reference(z, *scalars)
    wide = z.to(compute_dtype(z.dtype))
    for stage in epilogue.stages:
        wide = _function(stage, z.dtype)(wide, *_values(stage, scalars))
    return wide.to(z.dtype)


def pre_activation(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """z, [..., N] contiguous; no autograd."""
    return torch.nn.functional.linear(x, weight, bias).contiguous()


def apply(z: Tensor, epilogue: Epilogue, operands: Sequence[Tensor], numerics: str) -> Tensor:
    """The epilogue of ``z``, which is contiguous and stays as it is; no autograd."""
    if not epilogue.stages:
        return z.clone()
    if numerics == "bitwise":
        return epilogue.reference(z, *(v.reshape(()) for v in operands))
    return _apply_blocks(z, torch.empty_like(z), epilogue, operands)


def apply_(z: Tensor, epilogue: Epilogue, operands: Sequence[Tensor], numerics: str) -> Tensor:
    """As ``apply``, but ``z`` is overwritten where it can be."""
    if not epilogue.stages:
        return z
    if numerics == "bitwise":
        return apply(z, epilogue, operands, numerics)
    return _apply_blocks(z, z, epilogue, operands)


def _apply_blocks(z: Tensor, out: Tensor, epilogue: Epilogue, operands: Sequence[Tensor]) -> Tensor:
    """Writes the epilogue of ``z`` to ``out`` (which may be ``z``), both contiguous; ``out``."""
    scalars = [v.reshape(()) for v in operands]
    wide = z.dtype if _rounds_once(epilogue, z.dtype) else compute_dtype(z.dtype)
    # 1 << 62: one block. No kernel is saved by cutting up a tensor elsewhere.
    cpu = z.device.type == "cpu"
    block = _BLOCK // z.element_size() * torch.get_num_threads() if cpu else 1 << 62
    blocks = zip(z.view(-1).split(block), out.view(-1).split(block), strict=True)
    room = z.new_empty(min(block, z.numel()), dtype=wide) if wide != z.dtype else None
    for source, target in blocks:
        result = target if room is None else room[: source.numel()].copy_(source)
        value = source if room is None else result
        for stage in epilogue.stages:
            _function(stage, z.dtype)(value, *_values(stage, scalars), out=result)
            value = result
        if room is not None:
            target.copy_(result)
    return out


# --- the stages ----------------------------------------------------------------------------------


def _values(stage: StageCall, scalars: Sequence[Tensor]) -> list[Any]:
    return [scalars[s.index] if isinstance(s, Operand) else s for s in stage.scalars]


def _clamp(z: Tensor, lo: Any, hi: Any, out: Tensor | None = None) -> Tensor:
    return torch.clamp(z, *bounds_in(z, lo, hi), out=out)


def _gelu(z: Tensor, out: Tensor | None = None) -> Tensor:
    """z Phi(z) by erfc: no cancellation where z < 0, and infinite where z is, unlike oneDNN's."""
    return torch.mul(torch.erfc(z * -math.sqrt(0.5)) * 0.5, z, out=out)


def gelu_tanh(z: Tensor, out: Tensor | None = None) -> Tensor:
    """z (1 + tanh(u)) / 2 as z sigmoid(2u): no cancellation where z < 0."""
    twice = 2 * math.sqrt(2 / math.pi)
    exponent = (z * z * (twice * 0.044715) + twice) * z
    return torch.mul(torch.sigmoid(exponent), z, out=out)


# By the dtype of the result, where torch's operators are not what is wanted, or not as a function
# that writes. sigmoid keeps the digits of the negative tail, where 16 bits would show their loss,
# and is a little less exact for z > 0, which float32 would show.
_ROUNDED: dict[str, Callable[..., Tensor]] = {
    "mul": torch.mul,
    "div": torch.div,
    "clamp": _clamp,
}
_SINGLE = {**_ROUNDED, "gelu": _gelu}
_SHORT = {**_SINGLE, "gelu_tanh": gelu_tanh}


def _function(stage: StageCall, dtype: torch.dtype) -> Callable[..., Tensor]:
    """``stage`` as a function ``(z, *scalars, out=None)``, for results of ``dtype``.

    ``z`` is of the dtype that is computed in, and ``out`` may be ``z``.
    """
    functions = _SHORT if dtype in _WIDE else _ROUNDED if dtype is torch.float64 else _SINGLE
    found = functions.get(stage.name)
    return found or _written(STAGES[stage.name].reference)


def _written(reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def function(z: Tensor, *scalars: Any, out: Tensor | None = None) -> Tensor:
        value = reference(z, *scalars)
        return value if out is None else out.copy_(value)

    return function


@lru_cache(maxsize=1024)
def _rounds_once(epilogue: Epilogue, dtype: torch.dtype) -> bool:
    """Whether torch's operators of ``dtype`` round nothing but the last stage's result, once."""
    *before, last = epilogue.stages
    exact = all(stage.name == "clamp" and _has(stage, dtype) for stage in before)
    # A product, a quotient or a bound of 16 bits is computed in float32, and rounded.
    constant = not any(isinstance(s, Operand) for s in last.scalars)
    return exact and constant and last.name in ("mul", "div", "clamp")


def _has(stage: StageCall, dtype: torch.dtype) -> bool:
    """Whether the numbers of ``stage`` are known and numbers of ``dtype``."""
    known = [s for s in stage.scalars if not isinstance(s, Operand)]
    exact = all(float(torch.tensor(v, dtype=dtype)) == v for v in known)
    return exact and len(known) == len(stage.scalars)
