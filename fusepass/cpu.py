"""The op composed of ATen calls: what the CPU runs, and what any device without a kernel runs.

``bitwise`` is eager's own sequence of operators over whole tensors. ``accurate`` runs the same
stages in float32 (float64 for float64) over blocks small enough that temporaries stay in cache,
and rounds once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .epilogue import Epilogue

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
# Elements a thread works on at a time: 128 KiB of float32, half of a small L2 cache. Also ATen's
# grain size, below which it would leave threads idle.
_BLOCK = 32768


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which ``accurate`` computes the epilogue of ``dtype``."""
    return _WIDE.get(dtype, dtype)


def differentiable(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epilogue: Epilogue,
    operands: Sequence[Tensor],
    numerics: str,
) -> tuple[Tensor, Tensor]:
    """The op's mathematics in whole-tensor torch operators: any transform of torch goes through.

    Returns:
        (out, z), both [..., N] of ``x``'s dtype.
    """
    z = torch.nn.functional.linear(x, weight, bias)
    wide = z if numerics == "bitwise" else z.to(compute_dtype(z.dtype))
    out = epilogue.reference(wide, *(v.reshape(()) for v in operands))
    return out.to(z.dtype), z


def linear_with_preact(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epilogue: Epilogue,
    operands: Sequence[Tensor],
    numerics: str,
) -> tuple[Tensor, Tensor]:
    """(out, z), both [..., N] contiguous; no autograd."""
    z = torch.nn.functional.linear(x, weight, bias).contiguous()
    if numerics == "bitwise":
        return epilogue.reference(z, *(v.reshape(()) for v in operands)), z
    out = torch.empty_like(z)
    _apply_blocks(z, out, epilogue, operands)
    return out, z


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epilogue: Epilogue,
    operands: Sequence[Tensor],
    numerics: str,
) -> Tensor:
    """out, [..., N] contiguous; no autograd. The GEMM's output is overwritten where it can be."""
    z = torch.nn.functional.linear(x, weight, bias).contiguous()
    if numerics == "bitwise":
        return epilogue.reference(z, *(v.reshape(()) for v in operands))
    _apply_blocks(z, z, epilogue, operands)
    return z


def _apply_blocks(z: Tensor, out: Tensor, epilogue: Epilogue, operands: Sequence[Tensor]) -> None:
    """Writes the epilogue of ``z`` to ``out`` (which may be ``z``); both contiguous."""
    scalars = [v.reshape(()) for v in operands]
    wide = compute_dtype(z.dtype)
    cpu = z.device.type == "cpu"
    block = _BLOCK * torch.get_num_threads() if cpu else max(z.numel(), 1)
    blocks = zip(z.view(-1).split(block), out.view(-1).split(block), strict=True)
    for source, target in blocks:
        result = epilogue.reference(source.to(wide), *scalars)
        # oneDNN's float32 GELU of +inf is NaN; eager's GELU of a 16-bit +inf need not be.
        if cpu and wide != z.dtype and bool(result.isnan().any()):
            result = torch.where(result.isnan(), epilogue.reference(source, *scalars), result)
        target.copy_(result)
