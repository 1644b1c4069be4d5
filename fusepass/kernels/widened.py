"""The kernel of batches of float32 matrices that were widened from 16 bits (batches/widened.cu)."""

from __future__ import annotations

from pathlib import Path

from .build.build import build_cubin
from .build.toolchain import BuildError
from .library import warn_slower
from .plan.problem import BFLOAT16, FLOAT16

SOURCE = "batches/widened.cu"
_LEAST_CAPABILITY = (8, 0)  # tensor cores of bfloat16, and copies past the registers


def cubin(dtype: int, arch: str) -> Path:
    """The kernel's cubin for one architecture, built if this machine has not yet.

    Args:
        dtype: FLOAT16 or BFLOAT16 of ``problem.py``.
        arch: such as "90a".

    Raises:
        BuildError: if it cannot be built.
    """
    assert dtype in (FLOAT16, BFLOAT16), "the kernel multiplies matrices of 16 bits"
    return build_cubin(SOURCE, {"FUSEPASS_DTYPE": dtype}, arch)


def kernel_on(dtype: int, device: int) -> str:
    """The path of ``cubin`` for a device, "" where torch's own product runs instead."""
    import torch

    from .build.build import device_arch

    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return ""
    try:
        return str(cubin(dtype, device_arch(device)))
    except (BuildError, OSError) as error:
        warn_slower("products of widened batches are torch's own", error)
        return ""
