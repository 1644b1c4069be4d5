"""The op under ``torch.autocast``, used directly: cast as ``F.linear`` is.

Graphs that torch.compile makes hold their casts already and run with autocast off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ir import Epilogue
from ..ir.operands import places

_KEYS = {"cpu": torch._C.DispatchKey.AutocastCPU, "cuda": torch._C.DispatchKey.AutocastCUDA}
_ALL_KEYS = torch._C.DispatchKeySet(_KEYS["cpu"]) | torch._C.DispatchKeySet(_KEYS["cuda"])


def register(library: torch.library.Library, name: str) -> None:
    """Registers the Autocast kernels of the op ``name``."""
    for device_type in _KEYS:
        kernel = _kernel(getattr(torch.ops.fusepass, name).default, device_type)
        library.impl(name, kernel, f"Autocast{device_type.upper()}")


def register_gemm(library: torch.library.Library) -> None:
    """Registers the Autocast kernels of ``gemm``."""
    for device_type in _KEYS:
        library.impl("gemm", _gemm_kernel(device_type), f"Autocast{device_type.upper()}")


def register_linears(library: torch.library.Library) -> None:
    """Registers the Autocast kernels of ``linears``."""
    for device_type in _KEYS:
        library.impl("linears", _linears_kernel(device_type), f"Autocast{device_type.upper()}")


def _cast(tensor: Tensor | None, device_type: str) -> Tensor | None:
    if tensor is None or tensor.device.type != device_type or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))


def _kernel(op: Any, device_type: str) -> Any:
    def kernel(*args: Any, numerics: str = "accurate") -> Any:
        cast = [_cast(t, device_type) for t in args[:3]]
        with torch._C._ExcludeDispatchKeyGuard(_ALL_KEYS):
            return op(*cast, *args[3:], numerics=numerics)

    return kernel


def _gemm_kernel(device_type: str) -> Any:
    """Operands are cast, too, where x's dtype is what the epilogue reads."""

    def kernel(*args: Any, numerics: str = "accurate") -> Any:
        x, weights, biases, epilogue, operands = args
        of_x = [p.kind != "$" and p.dtype is None for p in places(Epilogue.parse(epilogue))]
        weights, biases = ([_cast(t, device_type) for t in some] for some in (weights, biases))
        if len(operands) == len(of_x):  # otherwise the op says what is wrong
            operands = [
                _cast(t, device_type) if like else t for t, like in zip(operands, of_x, strict=True)
            ]
        with torch._C._ExcludeDispatchKeyGuard(_ALL_KEYS):
            op = torch.ops.fusepass.gemm.default
            return op(_cast(x, device_type), weights, biases, epilogue, operands, numerics=numerics)

    return kernel


def _linears_kernel(device_type: str) -> Any:
    def kernel(x: Any, *lists: Any) -> Any:
        cast = [[_cast(t, device_type) for t in some] for some in lists]
        with torch._C._ExcludeDispatchKeyGuard(_ALL_KEYS):
            return torch.ops.fusepass.linears.default(_cast(x, device_type), *cast)

    return kernel
