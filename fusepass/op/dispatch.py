"""Where a call of an op goes: to the CUDA kernels, or through autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cuda_ready(x: Tensor) -> bool:
    """Loads the CUDA kernels for a CUDA tensor; True if the dispatcher now goes to them."""
    if x.device.type != "cuda" or x.layout != torch.strided:
        return False
    from ..kernels import load_binding

    return load_binding()


def wants_gradient(tensors: Sequence[Tensor]) -> bool:
    """Whether a gradient of something computed from them is wanted, backward or forward."""
    backward = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return backward or is_dual(tensors)


def is_dual(tensors: Sequence[Tensor]) -> bool:
    """Whether forward-mode AD is under way on them."""
    from torch.autograd import forward_ad

    return forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(t).tangent is not None for t in tensors
    )
