"""``torch.vmap`` through the op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import cpu
from .ir import Epilogue


def vmap_linear_with_preact(
    info: Any, in_dims: Any, *args: Any, numerics: str = "accurate"
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """Batched over x alone the op itself runs; otherwise torch's batched operators do.

    Returns:
        ((out, z), (0, 0)): the batch is dimension 0 of both.
    """
    x, weight, bias, epilogue, operands = args
    x_dim, weight_dim, bias_dim, _, operand_dims = in_dims
    if all(d is None for d in (weight_dim, bias_dim, *(operand_dims or ()))):
        op = torch.ops.fusepass.linear_with_preact.default
        both = op(x.movedim(x_dim, 0), weight, bias, epilogue, operands, numerics=numerics)
        return both, (0, 0)
    x, weight = _batch_first(x, x_dim), _batch_first(weight, weight_dim)
    z = x.reshape(x.shape[0], -1, x.shape[-1]) @ weight.mT
    if bias is not None:
        z = z + _batch_first(bias, bias_dim).unsqueeze(1)
    z = z.expand(info.batch_size, *z.shape[1:])
    wide = z.dtype if numerics == "bitwise" else cpu.compute_dtype(z.dtype)
    scalars = [
        _batch_first(v, d).reshape(-1, 1, 1).to(wide)
        for v, d in zip(operands, operand_dims or (), strict=True)
    ]
    out = cpu.differentiable(z, Epilogue.parse(epilogue), scalars, numerics)
    shape = (info.batch_size, *x.shape[1:-1], weight.shape[1])
    return (out.reshape(shape), z.reshape(shape)), (0, 0)


def vmap_linear(*args: Any, **kwargs: Any) -> tuple[Tensor, int]:
    """``vmap_linear_with_preact`` without z."""
    (out, _), (dim, _) = vmap_linear_with_preact(*args, **kwargs)
    return out, dim


def _batch_first(tensor: Tensor, dim: int | None) -> Tensor:
    return tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
