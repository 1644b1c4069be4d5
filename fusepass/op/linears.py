"""``torch.ops.fusepass.linears``: several Linears of one x, as those of queries, keys and values.

::

    linears(x, weights, biases) -> outputs

    x        [..., K]; two dimensions of any strides
    weights  one to four of [N, K], each of its own N and any strides, of x's dtype
    biases   as many, each [N] or None
    outputs  as many, [..., N] contiguous: x @ weight.T + bias, no two in the same memory

In 16 bits it is one launch where the plan finds that faster than one for each; nothing is packed.
Errors are ValueErrors that name the argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import autocast, cpu
from .arguments import check_linears
from .dispatch import cuda_ready, wants_gradient
from .vmap import vmap_gemm

_ARGUMENTS = "(Tensor x, Tensor[] weights, Tensor?[] biases)"

_Biases = Sequence["Tensor | None"]


def _fake(x: Tensor, weights: Sequence[Tensor], biases: _Biases) -> list[Tensor]:
    check_linears(x, weights, biases)
    return [x.new_empty((*x.shape[:-1], w.shape[0])) for w in weights]


def _linears(x: Tensor, weights: Sequence[Tensor], biases: _Biases) -> list[Tensor]:
    if cuda_ready(x):
        op: Callable[..., list[Tensor]] = torch.ops.fusepass.linears.default
        return op(x, weights, biases)
    check_linears(x, weights, biases)
    return [cpu.pre_activation(x, w, b) for w, b in zip(weights, biases, strict=True)]


def _composed(x: Tensor, weights: Sequence[Tensor], biases: _Biases) -> list[Tensor]:
    """By torch's own operators, whose gradients torch knows; what the C++ side calls where one is
    wanted, and where arguments are wrong."""
    check_linears(x, weights, biases)
    pairs = zip(weights, biases, strict=True)
    return [torch.nn.functional.linear(x, w, b).contiguous() for w, b in pairs]


def _autograd(
    keyset: torch._C.DispatchKeySet, x: Tensor, weights: Sequence[Tensor], biases: _Biases
) -> Any:
    if wants_gradient([x, *weights, *(b for b in biases if b is not None)]):
        return _composed(x, weights, biases)
    op: Callable[..., Any] = torch.ops.fusepass.linears.default.redispatch
    with torch._C._AutoDispatchBelowAutograd():
        return op(keyset & torch._C._after_autograd_keyset, x, weights, biases)


def _vmap(
    info: Any, in_dims: Any, x: Tensor, weights: Sequence[Tensor], biases: _Biases
) -> tuple[list[Tensor], list[int]]:
    """Each by itself, as a ``gemm``."""
    x_dim, *lists = in_dims
    dims = zip(*(given or [None] * len(weights) for given in lists), strict=True)
    outputs = []
    for w, b, (w_dim, b_dim) in zip(weights, biases, dims, strict=True):
        outputs += vmap_gemm(info, (x_dim, [w_dim], [b_dim], None, []), x, [w], [b], "", [])[0]
    return outputs, [0] * len(outputs)


def _flops(x: Sequence[int], weights: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> int:
    """2MNK a weight."""
    return 2 * math.prod(x) * sum(n for n, _ in weights)


def _plan(*problem: Any) -> str:
    """The kernel for M, K and each weight's N, as ``_plan`` of linear.py says; builds the cubin."""
    from ..kernels import plan_linears

    return plan_linears(*problem)


def define(library: torch.library.Library, tags: tuple[torch.Tag, ...]) -> None:
    """Adds ``linears`` to the library."""
    library.define(f"linears{_ARGUMENTS} -> Tensor[]", tags=tags)
    library.define(f"_linears_composed{_ARGUMENTS} -> Tensor[]")
    library.define(
        "_plan_linears(int dtype, int m, int[] n, int k, bool w_is_kn, bool x_is_km, int device) "
        "-> str"
    )
    # An alias key, as in linear.py: a kernel at CUDA wins over it without overriding it.
    library.impl("linears", _linears, "CompositeExplicitAutograd")
    library.impl("_linears_composed", _composed, "CompositeImplicitAutograd")
    library.impl("_plan_linears", _plan, "CompositeExplicitAutograd")
    torch.library.register_fake("fusepass::linears", _fake, lib=library)
    library.impl("linears", _autograd, "Autograd", with_keyset=True)
    autocast.register_linears(library)
    torch.library.register_vmap("fusepass::linears", _vmap, lib=library)
    register_flop_formula(torch.ops.fusepass.linears)(_flops)  # type: ignore[no-untyped-call]
