"""Gradients of the op for direct use; compiled graphs keep their own backward and skip this.

The pre-activation is saved, and the epilogue is differentiated by torch's own formulas for the
stages' references, so gradients are those of eager and can be differentiated again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ir import Epilogue
from ..ir.reference import evaluate
from . import cpu


class LinearEpilogue(torch.autograd.Function):
    """(out, z) = fusepass::linear_with_preact, differentiable any number of times."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        epilogue: str,
        numerics: str,
        *operands: Tensor,
    ) -> tuple[Tensor, Tensor]:
        op = torch.ops.fusepass.linear_with_preact.default
        out, z = op(x, weight, bias, epilogue, list(operands), numerics=numerics)
        ctx.save_for_backward(x, weight, z, *operands)
        ctx.epilogue, ctx.numerics = epilogue, numerics
        ctx.set_materialize_grads(False)
        return out, z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_out, grad_z = grads
        x, weight, z, *operands = ctx.saved_tensors
        needs = ctx.needs_input_grad
        operand_grads: list[Tensor | None] = [None] * len(operands)
        if grad_out is not None:
            inner, operand_grads = _epilogue_backward(ctx, grad_out, z, operands, needs[5:])
            grad_z = inner if grad_z is None else grad_z + inner
        if grad_z is None:
            return (None,) * len(needs)
        grad_x = grad_z @ weight if needs[0] else None
        rows = grad_z.reshape(-1, grad_z.shape[-1])
        grad_weight = rows.t() @ x.reshape(-1, x.shape[-1]) if needs[1] else None
        grad_bias = rows.sum(0) if needs[2] else None
        return grad_x, grad_weight, grad_bias, None, None, *operand_grads


def _epilogue_backward(
    ctx: Any, grad_out: Tensor, z: Tensor, operands: list[Tensor], needs: tuple[bool, ...]
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of z and of the operands that need one; differentiable if grad mode is on."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # A fresh leaf where nobody differentiates again, so that no graph outlives this call.
        z = z if again and z.requires_grad else z.detach().requires_grad_()
        leaves = [
            v if again or not need else v.detach().requires_grad_()
            for v, need in zip(operands, needs, strict=True)
        ]
        scalars = [v.reshape(()) for v in leaves]
        wide = z if ctx.numerics == "bitwise" else z.to(cpu.compute_dtype(z.dtype))
        out = evaluate(Epilogue.parse(ctx.epilogue), wide, scalars)[0].to(z.dtype)
    wanted = [z, *(v for v, need in zip(leaves, needs, strict=True) if need)]
    found = torch.autograd.grad(out, wanted, grad_out, create_graph=again, allow_unused=True)
    of_operands = iter(found[1:])
    return found[0], [next(of_operands) if need else None for need in needs]
