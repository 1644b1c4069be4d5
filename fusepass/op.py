"""The ops: ``torch.ops.fusepass.linear`` and ``linear_with_preact``.

``gemm`` is in gemm_op.py, ``bmm`` in bmm.py.

Importing this module defines them for every device, with fake tensors, autograd, vmap and FLOP
count. CUDA's own kernels are C++ (``kernels/binding.cpp``); they are built and loaded by the first
call on a CUDA tensor, and from then on the dispatcher goes to them directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import autocast, bmm, constant, cpu, gemm_op, presplit
from .arguments import check_arguments
from .ir import Epilogue
from .ir.outputs import with_preact
from .vmap import vmap_linear, vmap_linear_with_preact

_ARGUMENTS = (
    "(Tensor x, Tensor weight, Tensor? bias, str epilogue, Tensor[] operands, *, "
    'str numerics="accurate")'
)
_PLAN = (
    "_plan(str epilogue, int dtype, int m, int n, int k, bool w_is_kn, bool with_preact, "
    "bool x_is_km, int device) -> str"
)
# Exact strides: bitwise must make eager's own GEMM call, and strides choose cuBLAS's kernel.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

_library = torch.library.Library("fusepass", "DEF")
_library.define("linear" + _ARGUMENTS + " -> Tensor", tags=_TAGS)
_library.define("linear_with_preact" + _ARGUMENTS + " -> (Tensor, Tensor)", tags=_TAGS)
_library.define("_differentiable" + _ARGUMENTS + " -> (Tensor, Tensor)")
# What the C++ side asks Python for: once a text, once a shape, and when arguments are wrong.
_library.define("_describe(str epilogue, int dtype) -> (int, float[])")
_library.define(_PLAN)
_library.define(
    "_pointwise(str epilogue, int dtype, bool bitwise, int host, int device) -> (str, float[])"
)
_library.define("_compose(Tensor z, str epilogue, Tensor[] operands, str numerics) -> Tensor")
_library.define("_forget_plans() -> ()")
_library.define("_check_arguments" + _ARGUMENTS + " -> ()")

_Arguments = tuple[Tensor, Tensor, "Tensor | None", str, Sequence[Tensor]]


# --- fake tensors, devices without a kernel, FLOPs ----------------------------------------------


def _fake(*args: Any, numerics: str = "accurate") -> Tensor:
    x, weight, bias, epilogue, operands = args
    check_arguments(x, weight, bias, epilogue, operands, numerics)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_with_preact(*args: Any, numerics: str = "accurate") -> tuple[Tensor, Tensor]:
    out = _fake(*args, numerics=numerics)
    return out, torch.empty_like(out)


def cuda_ready(x: Tensor) -> bool:
    """Loads the CUDA kernels for a CUDA tensor; True if the dispatcher now goes to them."""
    if x.device.type != "cuda" or x.layout != torch.strided:
        return False
    from .kernels import load_binding

    return load_binding()


def _linear(*args: Any, numerics: str = "accurate") -> Tensor:
    if cuda_ready(args[0]):
        op: Callable[..., Tensor] = torch.ops.fusepass.linear.default
        return op(*args, numerics=numerics)
    x, weight, bias, epilogue, operands = args
    parsed = check_arguments(x, weight, bias, epilogue, operands, numerics)
    return cpu.run(parsed, cpu.pre_activation(x, weight, bias), operands, numerics)[0]


def _linear_with_preact(*args: Any, numerics: str = "accurate") -> tuple[Tensor, Tensor]:
    if cuda_ready(args[0]):
        op: Callable[..., tuple[Tensor, Tensor]] = torch.ops.fusepass.linear_with_preact.default
        return op(*args, numerics=numerics)
    x, weight, bias, epilogue, operands = args
    parsed = check_arguments(x, weight, bias, epilogue, operands, numerics)
    z = cpu.pre_activation(x, weight, bias)
    out, z = cpu.run(with_preact(parsed), z, operands, numerics)
    return out, z


def _flops(x: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """2MNK; the epilogue is not counted, as torch counts no pointwise operator."""
    flops = 2 * weight[0]
    for size in x:
        flops *= size
    return flops


# --- autograd and functorch ---------------------------------------------------------------------


def _tensors(args: _Arguments) -> list[Tensor]:
    x, weight, bias, _, operands = args
    return [t for t in (x, weight, bias, *operands) if t is not None]


def is_dual(tensors: Sequence[Tensor]) -> bool:
    """Whether forward-mode AD is under way on these tensors."""
    from torch.autograd import forward_ad

    return forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(t).tangent is not None for t in tensors
    )


def _differentiable(*args: Any, numerics: str = "accurate") -> tuple[Tensor, Tensor]:
    """What runs when a gradient is wanted; the C++ side calls it too, hence an op of its own."""
    from .autograd import LinearEpilogue

    x, weight, bias, epilogue, operands = args
    parsed = check_arguments(x, weight, bias, epilogue, operands, numerics)
    if is_dual(_tensors(args)) or torch._C._are_functorch_transforms_active():
        z = torch.nn.functional.linear(x, weight, bias)
        scalars = [v.reshape(()) for v in operands]
        return cpu.differentiable(z, parsed, scalars, numerics)[0], z
    out: tuple[Tensor, Tensor] = LinearEpilogue.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, epilogue, numerics, *operands
    )
    return out


def _autograd(name: str) -> Callable[..., Any]:
    """The Autograd kernel of ``name``: below autograd at once unless a gradient is wanted."""
    op = getattr(torch.ops.fusepass, name).default

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any, numerics: str = "accurate") -> Any:
        tensors = _tensors(args)
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if wanted or is_dual(tensors):
            both = torch.ops.fusepass._differentiable.default(*args, numerics=numerics)
            return both[0] if name == "linear" else both
        with torch._C._AutoDispatchBelowAutograd():
            below = keyset & torch._C._after_autograd_keyset
            return op.redispatch(below, *args, numerics=numerics)

    return kernel


# --- what the C++ side asks for ------------------------------------------------------------------


def _describe(epilogue: str, dtype: int) -> tuple[int, list[float]]:
    """How many operands an epilogue takes, and the numbers of the program that a GEMM computes."""
    from .kernels import describe

    return describe(epilogue, dtype)


def _pointwise(
    epilogue: str, dtype: int, bitwise: bool, host: int, device: int
) -> tuple[str, list[float]]:
    """The cubin of the kernel behind torch's GEMM, or "" if there is none, and its numbers."""
    from .kernels import pointwise_kernel

    return pointwise_kernel(epilogue, dtype, bitwise, host, device)


def _compose(z: Tensor, epilogue: str, operands: Sequence[Tensor], numerics: str) -> Tensor:
    """The epilogue of ``z`` by torch's own operators."""
    out, _ = cpu.run(with_preact(Epilogue.parse(epilogue)), z, operands, numerics)
    return out


def _check_arguments(*args: Any, numerics: str = "accurate") -> None:
    x, weight, bias, epilogue, operands = args
    check_arguments(x, weight, bias, epilogue, operands, numerics)


def _plan(*problem: Any) -> str:
    """The kernel for a problem: "hybrid" or "<config>|<cubin>|<kernel name>"; builds the cubin."""
    from .kernels import plan_kernel

    return plan_kernel(*problem)


def _register() -> None:
    constant.define(_library, _TAGS)
    presplit.define(_library, _TAGS)
    gemm_op.define(_library, _TAGS)
    bmm.define(_library, _TAGS)
    # Alias keys throughout: the C++ kernels register at CUDA and AutogradCUDA, which win over
    # these without overriding them.
    _library.impl("linear", _linear, "CompositeExplicitAutograd")
    _library.impl("linear_with_preact", _linear_with_preact, "CompositeExplicitAutograd")
    _library.impl("_differentiable", _differentiable, "CompositeImplicitAutograd")
    _library.impl("_describe", _describe, "CompositeExplicitAutograd")
    _library.impl("_plan", _plan, "CompositeExplicitAutograd")
    _library.impl("_pointwise", _pointwise, "CompositeExplicitAutograd")
    _library.impl("_compose", _compose, "CompositeExplicitAutograd")
    _library.impl("_check_arguments", _check_arguments, "CompositeImplicitAutograd")
    torch.library.register_fake("fusepass::linear", _fake, lib=_library)
    torch.library.register_fake("fusepass::linear_with_preact", _fake_with_preact, lib=_library)
    for name in ("linear", "linear_with_preact"):
        _library.impl(name, _autograd(name), "Autograd", with_keyset=True)
        autocast.register(_library, name)
    for name, vmap in (("linear", vmap_linear), ("linear_with_preact", vmap_linear_with_preact)):
        torch.library.register_vmap(f"fusepass::{name}", vmap, lib=_library)
    packets = [torch.ops.fusepass.linear, torch.ops.fusepass.linear_with_preact]
    register_flop_formula(packets)(_flops)  # type: ignore[no-untyped-call]


_register()
