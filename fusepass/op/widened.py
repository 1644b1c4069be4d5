"""``torch.ops.fusepass.bmm_widened``: the float32 product of batches of 16-bit matrices.

::

    bmm_widened(x, w, scale) -> out

    x      [..., M, K], float16 or bfloat16, any strides
    w      [..., N, K], x's leading dimensions, dtype and device, any strides
    scale  a finite number
    out    [..., M, N], float32, contiguous: scale * x @ w.mT of the widened values

Products of 16-bit values are exact in float32, so that tensor cores of 16 bits compute it: in
bfloat16, where a GPU has them (compute capability 8.0), K is a multiple of 8 and at most 256,
elements lie beside one another along K, and rows start at multiples of 16 bytes. Elsewhere, and
where a gradient is wanted, it is torch's product of float32 tensors, each multiplied by the root of
the scale, as torch's own attention has it. Errors are ValueErrors that name the argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .dispatch import cuda_ready, wants_gradient

_NAME = "fusepass::bmm_widened"
_ARGUMENTS = "(Tensor x, Tensor w, float scale)"
DTYPES = (torch.float16, torch.bfloat16)


def _check(x: Tensor, w: Tensor, scale: float) -> None:
    """
    Raises:
        ValueError: naming the argument that is wrong and what it must be.
    """
    check: Callable[[Any, Callable[[], str]], None] = torch._check_value
    check(x.dtype in DTYPES, lambda: f"{_NAME}: x must be float16 or bfloat16, got {x.dtype}")
    check(x.dim() >= 2, lambda: f"{_NAME}: x must be [..., M, K], got shape {tuple(x.shape)}")
    check(
        w.dtype == x.dtype,
        lambda: f"{_NAME}: w is {w.dtype} and x is {x.dtype}; cast w with .to({x.dtype})",
    )
    check(
        w.device == x.device,
        lambda: f"{_NAME}: w is on {w.device} and x on {x.device}; move w with .to('{x.device}')",
    )

    def shapes() -> str:
        wanted = [*map(str, x.shape[:-2]), "N", str(x.shape[-1])]
        return f"{_NAME}: w must be [{', '.join(wanted)}], got {tuple(w.shape)}"

    check(w.dim() == x.dim(), shapes)
    for d in (*range(x.dim() - 2), -1):
        check(w.shape[d] == x.shape[d], shapes)
    check(math.isfinite(scale), lambda: f"{_NAME}: scale must be finite, got {scale}")


def _fake(x: Tensor, w: Tensor, scale: float) -> Tensor:
    _check(x, w, scale)
    return x.new_empty((*x.shape[:-1], w.shape[-2]), dtype=torch.float32)


def _bmm_widened(x: Tensor, w: Tensor, scale: float) -> Tensor:
    if cuda_ready(x):
        op: Callable[..., Tensor] = torch.ops.fusepass.bmm_widened.default
        return op(x, w, scale)
    return _composed(x, w, scale)


def _composed(x: Tensor, w: Tensor, scale: float) -> Tensor:
    """By torch's own operators; what the C++ side calls where no kernel of ours runs, too."""
    _check(x, w, scale)
    a, b, root = x.float(), w.float(), math.sqrt(abs(scale))
    if scale != 1:
        a, b = a * math.copysign(root, scale), b * root
    return torch.matmul(a, b.mT).contiguous()


def _autograd(keyset: torch._C.DispatchKeySet, x: Tensor, w: Tensor, scale: float) -> Tensor:
    """Torch's own product where a gradient is wanted, whose gradients torch knows."""
    if wants_gradient((x, w)):
        return _composed(x, w, scale)
    op: Callable[..., Tensor] = torch.ops.fusepass.bmm_widened.default.redispatch
    with torch._C._AutoDispatchBelowAutograd():
        return op(keyset & torch._C._after_autograd_keyset, x, w, scale)


def _vmap(info: Any, in_dims: Any, x: Tensor, w: Tensor, scale: float) -> tuple[Tensor, int]:
    """One more leading dimension, of x, of w or of both."""
    x, w = (
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip((x, w), in_dims[:2], strict=True)
    )
    return torch.ops.fusepass.bmm_widened(x, w, scale), 0


def _flops(x: Sequence[int], w: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """2MNK of each matrix."""
    return 2 * math.prod(x) * w[-2]


def _kernel(device: int) -> str:
    """The path of the kernel's cubin for a device, built; or ""."""
    from ..kernels.widened import kernel_on

    return kernel_on(device)


def define(library: torch.library.Library, tags: tuple[torch.Tag, ...]) -> None:
    """Adds ``bmm_widened`` to the library."""
    library.define(f"bmm_widened{_ARGUMENTS} -> Tensor", tags=tags)
    library.define(f"_bmm_widened_composed{_ARGUMENTS} -> Tensor")
    library.define("_widened_kernel(int device) -> str")
    # An alias key, as in linear.py: a kernel at CUDA wins over it without overriding it.
    library.impl("bmm_widened", _bmm_widened, "CompositeExplicitAutograd")
    library.impl("_bmm_widened_composed", _composed, "CompositeImplicitAutograd")
    library.impl("_widened_kernel", _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake("fusepass::bmm_widened", _fake, lib=library)
    library.impl("bmm_widened", _autograd, "Autograd", with_keyset=True)
    torch.library.register_vmap("fusepass::bmm_widened", _vmap, lib=library)
    register_flop_formula(torch.ops.fusepass.bmm_widened)(_flops)  # type: ignore[no-untyped-call]
