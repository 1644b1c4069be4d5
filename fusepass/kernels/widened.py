"""The kernel of batches of float32 matrices widened from bfloat16 (batches/widened.cu)."""

from __future__ import annotations

from pathlib import Path

from .build.build import build_cubin
from .build.toolchain import BuildError
from .library import warn_slower

SOURCE = "batches/widened.cu"
_LEAST_CAPABILITY = (8, 0)  # tensor cores of bfloat16, and copies past the registers


def cubin(arch: str) -> Path:
    """The kernel's cubin for one architecture, built if this machine has not yet.

    Args:
        arch: such as "90a".

    Raises:
        BuildError: if it cannot be built.
    """
    return build_cubin(SOURCE, {}, arch)


def kernel_on(device: int) -> str:
    """The path of ``cubin`` for a device, "" where torch's own product runs instead."""
    import torch

    from .build.build import device_arch

    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return ""
    try:
        return str(cubin(device_arch(device)))
    except (BuildError, OSError) as error:
        warn_slower("products of widened batches are torch's own", error)
        return ""
