"""The CUDA side: everything here is built or loaded by the first call that needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["has_fused_gemm", "load_binding", "plan_kernel"]


def has_fused_gemm(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether one kernel can run GEMM and epilogue together on this device, for this dtype.

    Where it is False the op still runs: the framework's GEMM, then one pointwise kernel.
    """
    import torch

    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return False
    return dtype in (torch.float16, torch.bfloat16, torch.float32)


def load_binding() -> bool:
    """Loads the C++ kernels, building them first if this machine has not; True if they run."""
    from .library import load

    return load()


def plan_kernel(*problem: Any) -> str:
    """The kernel for a problem; see ``fusepass::_plan`` in ``fusepass/op.py``."""
    from .library import plan_kernel

    return plan_kernel(*problem)
