"""The general op: ``torch.ops.fusepass.gemm``, one or two GEMMs of one x and any epilogue.

::

    gemm(x, weights, biases, epilogue, operands, numerics="accurate") -> outputs

    x         [..., K]; two dimensions of any strides, so that a transposed view costs nothing
    weights   one or two of [N, K], any strides: z = x @ weights[0].T + biases[0], z1 the other's;
              two if the epilogue reads z1
    biases    as many, each [N] or None, of x's dtype as the weights are
    epilogue  the text of a program (fusepass.Epilogue)
    operands  all ``$``, then ``col``, ``row`` and ``mat``, each kind by its index; ``$``: one
              element of any floating dtype, on x's device or the CPU; col [N], row [..., 1] and
              mat [..., N]: any strides, expanded dimensions among them, and the dtype that the
              text says, or x's. Beside ``rot64`` a mat may be [..., D], the same for all heads: D
              is a divisor of N, and as many columns as a head has, a multiple or a divisor of
              them. A col may be other numbers for each group of rows: [..., N] with x's sizes up
              to some dimension and ones behind it, as [B, 1, N] beside x [B, S, K]
    outputs   one tensor for each of the program's: [..., N] contiguous, or [N] of a ``col_sum``;
              of the dtype that the text says, or x's

Errors are ValueErrors that name the argument. ``linear`` and ``linear_with_preact`` (linear.py) are
the forms with one weight, scalars for operands and a plain result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import autocast, cpu
from .arguments import check_gemm
from .dispatch import cuda_ready, wants_gradient
from .vmap import vmap_gemm

_ARGUMENTS = (
    "(Tensor x, Tensor[] weights, Tensor?[] biases, str epilogue, Tensor[] operands, *, "
    'str numerics="accurate")'
)


def _fake(*args: Any, numerics: str = "accurate") -> list[Tensor]:
    x, weights, *_ = args
    parsed = check_gemm(*args, numerics=numerics)
    n = weights[0].shape[0]
    shapes = [(n,) if o.is_sum else (*x.shape[:-1], n) for o in parsed.outputs]
    dtypes = [x.dtype if o.dtype is None else o.dtype.in_torch for o in parsed.outputs]
    return [x.new_empty(s, dtype=d) for s, d in zip(shapes, dtypes, strict=True)]


def _gemm(*args: Any, numerics: str = "accurate") -> list[Tensor]:
    if cuda_ready(args[0]):
        op: Callable[..., list[Tensor]] = torch.ops.fusepass.gemm.default
        return op(*args, numerics=numerics)
    x, weights, biases, _, operands = args
    parsed = check_gemm(*args, numerics=numerics)
    both = [cpu.pre_activation(x, w, b) for w, b in zip(weights, biases, strict=True)]
    return cpu.run(parsed, both[0], operands, numerics, second(both))


def _check(*args: Any, numerics: str = "accurate") -> None:
    """What the C++ side calls where arguments are wrong."""
    check_gemm(*args, numerics=numerics)


def _differentiable(*args: Any, numerics: str = "accurate") -> list[Tensor]:
    """What runs when a gradient is wanted: torch's own operators, whose gradients torch knows."""
    x, weights, biases, _, operands = args
    parsed = check_gemm(*args, numerics=numerics)
    both = [torch.nn.functional.linear(x, w, b) for w, b in zip(weights, biases, strict=True)]
    count = parsed.count("$")
    given = [*(v.reshape(()) for v in operands[:count]), *operands[count:]]
    results = cpu.differentiable(both[0], parsed, given, numerics, second(both))
    return [t.contiguous() for t in results]


def second(both: Sequence[Tensor]) -> Tensor | None:
    """z1, of the GEMMs' results."""
    return both[1] if len(both) > 1 else None


def tensors(args: Sequence[Any]) -> list[Tensor]:
    """The tensors among the arguments of the op."""
    x, weights, biases, _, operands = args
    return [t for t in (x, *weights, *biases, *operands) if t is not None]


def _autograd(keyset: torch._C.DispatchKeySet, *args: Any, numerics: str = "accurate") -> Any:
    """Below autograd at once unless a gradient is wanted."""
    if wants_gradient(tensors(args)):
        return torch.ops.fusepass._differentiable_gemm.default(*args, numerics=numerics)
    op: Callable[..., Any] = torch.ops.fusepass.gemm.default.redispatch
    with torch._C._AutoDispatchBelowAutograd():
        return op(keyset & torch._C._after_autograd_keyset, *args, numerics=numerics)


def _flops(x: Sequence[int], weights: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> int:
    """2MNK a weight; the epilogue is not counted, as torch counts no pointwise operator."""
    flops = 2 * sum(n for n, _ in weights)
    for size in x:
        flops *= size
    return flops


def define(library: torch.library.Library, tags: tuple[torch.Tag, ...]) -> None:
    """Adds ``gemm`` to the library."""
    library.define(f"gemm{_ARGUMENTS} -> Tensor[]", tags=tags)
    library.define(f"_differentiable_gemm{_ARGUMENTS} -> Tensor[]")
    library.define(f"_check_gemm{_ARGUMENTS} -> ()")
    # An alias key, as in linear.py: a kernel at CUDA wins over it without overriding it.
    library.impl("gemm", _gemm, "CompositeExplicitAutograd")
    library.impl("_differentiable_gemm", _differentiable, "CompositeImplicitAutograd")
    library.impl("_check_gemm", _check, "CompositeImplicitAutograd")
    torch.library.register_fake("fusepass::gemm", _fake, lib=library)
    library.impl("gemm", _autograd, "Autograd", with_keyset=True)
    autocast.register_gemm(library)
    torch.library.register_vmap("fusepass::gemm", vmap_gemm, lib=library)
    register_flop_formula(torch.ops.fusepass.gemm)(_flops)  # type: ignore[no-untyped-call]
