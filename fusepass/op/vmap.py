"""``torch.vmap`` through the op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ir import Epilogue
from ..ir.operands import places
from . import cpu


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
    (out,) = cpu.differentiable(z, Epilogue.parse(epilogue), scalars, numerics)
    shape = (info.batch_size, *x.shape[1:-1], weight.shape[1])
    return (out.reshape(shape), z.reshape(shape)), (0, 0)


def vmap_linear(*args: Any, **kwargs: Any) -> tuple[Tensor, int]:
    """``vmap_linear_with_preact`` without z."""
    (out, _), (dim, _) = vmap_linear_with_preact(*args, **kwargs)
    return out, dim


def vmap_gemm(
    info: Any, in_dims: Any, *args: Any, numerics: str = "accurate"
) -> tuple[list[Tensor], list[int]]:
    """``gemm`` in torch's batched operators.

    Returns:
        (outputs, dims): the batch is dimension 0 of all.
    """
    x, weights, biases, epilogue, operands = args
    x_dim, weight_dims, bias_dims, _, operand_dims = in_dims
    parsed = Epilogue.parse(epilogue)
    x = _batch_first(x, x_dim)
    single = x.dim() == 2  # [batch, K]: of one row each
    x = x.unsqueeze(1) if single else x
    shape = (info.batch_size, *x.shape[1:-1], weights[0].shape[0])

    def spread(tensor: Tensor, dim: int | None, last: int) -> Tensor:
        """With the batch in front, and dimensions of 1 before the last ``last``."""
        tensor = _batch_first(tensor, dim)
        ones = x.dim() - 1 - last
        return tensor.reshape(tensor.shape[0], *(1,) * ones, *tensor.shape[tensor.dim() - last :])

    results = []
    for i, weight in enumerate(weights):
        dim = weight_dims[i] if weight_dims is not None else None
        w = spread(weight, dim, 2) if x.dim() > 2 else _batch_first(weight, dim)
        z = x @ w.mT
        if biases[i] is not None:
            z = z + spread(biases[i], bias_dims[i] if bias_dims is not None else None, 1)
        results.append(z.expand(*shape[:-1], z.shape[-1]))
    given = []
    for place, operand, dim in zip(places(parsed), operands, operand_dims or (), strict=True):
        if place.kind == "$":
            given.append(_batch_first(operand, dim).reshape(-1, *(1,) * (x.dim() - 1)))
        elif place.kind == "col" and operand.dim() - (dim is not None) == 1:
            given.append(spread(operand, dim, 1))
        else:
            operand = _batch_first(operand, dim)
            given.append(operand.unsqueeze(1) if single else operand)
    z1 = results[1] if len(results) > 1 else None
    outputs = cpu.differentiable(results[0], parsed, given, numerics, z1, batched=1)
    outputs = [
        t.squeeze(1) if single and not o.is_sum else t
        for o, t in zip(parsed.outputs, outputs, strict=True)
    ]
    return outputs, [0] * len(outputs)


def _batch_first(tensor: Tensor, dim: int | None) -> Tensor:
    return tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
