"""The ops: ``torch.ops.fusepass.linear`` and ``linear_with_preact``.

``gemm`` is in gemm.py, ``linears`` in linears.py, ``bmm_widened`` in widened.py.

Importing this module defines them for every device, with fake tensors, autograd, vmap and FLOP
count. CUDA's own kernels are C++ (``kernels/csrc/binding/binding.cpp``); they are built and loaded
by the first call on a CUDA tensor, and from then on the dispatcher goes to them directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..ir import Epilogue
from ..ir.outputs import with_preact
from . import autocast, constant, consuming, cpu, linears, presplit, widened
from . import gemm as gemm_op
from .arguments import check_arguments
from .dispatch import cuda_ready, is_dual, wants_gradient
from .vmap import vmap_linear, vmap_linear_with_preact

_ARGUMENTS = (
    "(Tensor x, Tensor weight, Tensor? bias, str epilogue, Tensor[] operands, *, "
    'str numerics="accurate")'
)
# The text, the text that a kernel is planned for and whether z is one more output of that, whether
# z1 is read; how many $, col, row and mat; dtypes of the last three and of the outputs; which
# outputs are sums, which are z (1) or z1 (2) as a GEMM leaves them; the numbers of the program that
# a kernel computes; the columns of the heads whose halves it exchanges, or 0.
_DESCRIBE = (
    "_describe(str epilogue, int dtype, bool with_preact) -> "
    "(str, str, bool, bool, int[], int[], int[], bool[], int[], float[], int)"
)
_PLAN = (
    "_plan(str epilogue, int dtype, int m, int n, int k, bool w_is_kn, bool with_preact, "
    "bool x_is_km, int group, bool biased, int device) -> str"
)
# Exact strides: bitwise must make eager's own GEMM call, and strides choose cuBLAS's kernel. To
# Inductor the tag is a wish, as far as the pass says nothing of eager's arguments.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

_library = torch.library.Library("fusepass", "DEF")
_library.define("linear" + _ARGUMENTS + " -> Tensor", tags=_TAGS)
_library.define("linear_with_preact" + _ARGUMENTS + " -> (Tensor, Tensor)", tags=_TAGS)
_library.define("_differentiable" + _ARGUMENTS + " -> (Tensor, Tensor)")
# What the C++ side asks Python for: once a text, once a shape, and when arguments are wrong.
_library.define(_DESCRIBE)
_library.define(_PLAN)
_library.define(
    "_pointwise(str epilogue, int dtype, bool bitwise, int host, int device) -> "
    "(str, bool, float[])"
)
_library.define(
    "_compose(Tensor z, Tensor? z1, str epilogue, Tensor[] operands, str numerics) -> Tensor[]"
)
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
        if wants_gradient(_tensors(args)):
            both = torch.ops.fusepass._differentiable.default(*args, numerics=numerics)
            return both[0] if name == "linear" else both
        with torch._C._AutoDispatchBelowAutograd():
            below = keyset & torch._C._after_autograd_keyset
            return op.redispatch(below, *args, numerics=numerics)

    return kernel


# --- what the C++ side asks for ------------------------------------------------------------------


def _describe(epilogue: str, dtype: int, with_preact: bool) -> tuple[Any, ...]:
    """What the binding knows of an epilogue."""
    from ..kernels import describe

    return describe(epilogue, dtype, with_preact)


def _pointwise(
    epilogue: str, dtype: int, bitwise: bool, host: int, device: int
) -> tuple[str, bool, list[float]]:
    """The cubin of the kernel behind torch's GEMM, or "" if there is none; whether it is that of
    tiles; its numbers."""
    from ..kernels import pointwise_kernel

    return pointwise_kernel(epilogue, dtype, bitwise, host, device)


def _compose(
    z: Tensor, z1: Tensor | None, epilogue: str, operands: Sequence[Tensor], numerics: str
) -> list[Tensor]:
    """The outputs of an epilogue by torch's own operators; ``z`` and ``z1`` are handed over."""
    return cpu.run(Epilogue.parse(epilogue), z, operands, numerics, z1)


def _check_arguments(*args: Any, numerics: str = "accurate") -> None:
    x, weight, bias, epilogue, operands = args
    check_arguments(x, weight, bias, epilogue, operands, numerics)


def _plan(*problem: Any) -> str:
    """The kernel for a problem: "hybrid" or "<config>|<cubin>|<kernel name>"; builds the cubin."""
    from ..kernels import plan_kernel

    return plan_kernel(*problem)


def _register() -> None:
    constant.define(_library, _TAGS)
    presplit.define(_library, _TAGS)
    consuming.define(_library)
    gemm_op.define(_library, _TAGS)
    linears.define(_library, _TAGS)
    widened.define(_library, _TAGS)
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
