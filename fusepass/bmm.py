"""``torch.ops.fusepass.bmm``: products of batches of matrices.

::

    bmm(x, w) -> out

    x    [B, M, K], any strides
    w    [B, K, N], any strides, x's dtype and device
    out  [B, M, N], contiguous

On Hopper float32 matrices run as one kernel where torch's precision is "highest" and the plan
(kernels/plan_bmm.py) expects it to be faster. Everything else is ``aten.bmm``; so are the errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


def _fake(x: Tensor, w: Tensor) -> Tensor:
    return torch.empty_like(torch.bmm(x, w), memory_format=torch.contiguous_format)


def _bmm(x: Tensor, w: Tensor) -> Tensor:
    from .dispatch import cuda_ready

    if cuda_ready(x):
        op: Callable[..., Tensor] = torch.ops.fusepass.bmm.default
        return op(x, w)
    return torch.bmm(x, w).contiguous()


def _plan_bmm(batches: int, m: int, n: int, k: int, device: int) -> str:
    """The kernels' cubin, built; "" where torch's product runs."""
    from .kernels.plan_bmm import plan_on

    return plan_on(batches, m, n, k, device)


def _autograd(keyset: torch._C.DispatchKeySet, x: Tensor, w: Tensor) -> Tensor:
    """Torch's own product where a gradient is wanted, whose gradients torch knows."""
    from .dispatch import is_dual

    wanted = torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)
    if wanted or is_dual((x, w)):
        return torch.bmm(x, w)
    op: Callable[..., Tensor] = torch.ops.fusepass.bmm.default.redispatch
    with torch._C._AutoDispatchBelowAutograd():
        return op(keyset & torch._C._after_autograd_keyset, x, w)


def _vmap(info: Any, in_dims: Any, x: Tensor, w: Tensor) -> tuple[Tensor, int]:
    """One more batch dimension, of x, of w or of both, is part of the batch."""
    both = []
    for tensor, dim in zip((x, w), in_dims, strict=True):
        first = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
        both.append(first.expand(info.batch_size, *first.shape[1:]).flatten(0, 1))
    out = torch.ops.fusepass.bmm(*both)
    return out.unflatten(0, (info.batch_size, -1)), 0


def _flops(x: Sequence[int], w: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """2BMNK."""
    batches, m, k = x
    return 2 * batches * m * k * w[-1]


def define(library: torch.library.Library, tags: tuple[torch.Tag, ...]) -> None:
    """Adds ``bmm`` to the library."""
    library.define("bmm(Tensor x, Tensor w) -> Tensor", tags=tags)
    library.define("_plan_bmm(int batches, int m, int n, int k, int device) -> str")
    # An alias key, as in op.py: a kernel at CUDA wins over it without overriding it.
    library.impl("bmm", _bmm, "CompositeExplicitAutograd")
    library.impl("_plan_bmm", _plan_bmm, "CompositeExplicitAutograd")
    torch.library.register_fake("fusepass::bmm", _fake, lib=library)
    library.impl("bmm", _autograd, "Autograd", with_keyset=True)
    torch.library.register_vmap("fusepass::bmm", _vmap, lib=library)
    register_flop_formula(torch.ops.fusepass.bmm)(_flops)  # type: ignore[no-untyped-call]
