"""The op under ``torch.autocast``, used directly: cast as ``F.linear`` is.

Graphs that torch.compile makes hold their casts already and run with autocast off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_KEYS = {"cpu": torch._C.DispatchKey.AutocastCPU, "cuda": torch._C.DispatchKey.AutocastCUDA}
_ALL_KEYS = torch._C.DispatchKeySet(_KEYS["cpu"]) | torch._C.DispatchKeySet(_KEYS["cuda"])


def register(library: torch.library.Library, name: str) -> None:
    """Registers the Autocast kernels of the op ``name``."""
    for device_type in _KEYS:
        kernel = _kernel(getattr(torch.ops.fusepass, name).default, device_type)
        library.impl(name, kernel, f"Autocast{device_type.upper()}")


def _kernel(op: Any, device_type: str) -> Any:
    def cast(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.device.type != device_type or tensor.dtype == torch.float64:
            return tensor
        return tensor.to(torch.get_autocast_dtype(device_type))

    def kernel(*args: Any, numerics: str = "accurate") -> Any:
        x, weight, bias, *rest = args
        with torch._C._ExcludeDispatchKeyGuard(_ALL_KEYS):
            return op(cast(x), cast(weight), cast(bias), *rest, numerics=numerics)

    return kernel
