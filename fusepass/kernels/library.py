"""What the op asks of the kernels at run time; it never fails a model that torch could run."""

from __future__ import annotations

import threading
import warnings
from functools import lru_cache

from .toolchain import BuildError

_lock = threading.Lock()
_loaded: bool | None = None  # None: not tried yet


def load() -> bool:
    """Loads the C++ kernels, once; False, after one warning, if this machine cannot build them."""
    global _loaded
    with _lock:
        if _loaded is None:
            from .build import load_binding

            try:
                load_binding()
                _loaded = True
            except (BuildError, OSError) as error:
                _loaded = False
                _warn(f"fused ops run as torch's own operators, which is slower: {error}")
        return _loaded


def plan_kernel(
    structure: str,
    dtype: int,
    m: int,
    n: int,
    k: int,
    w_is_kn: bool,
    with_preact: bool,
    device: int,
) -> str:
    """The kernel for a problem, built: "hybrid" or "<config>|<cubin's path>|<kernel's name>".

    Args:
        structure: the epilogue's stages without their numbers.
        dtype: gemm.h's DType.
        m, n, k: of x [m, k] and w [n, k].
        w_is_kn: whether w is stored [k, n].
        with_preact: whether z is wanted too.
        device: index of the CUDA device.
    """
    import torch

    from . import plan_f32
    from .build import device_arch

    arch = device_arch(device)
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    found = None
    try:
        if dtype == 0:
            sms = plan_f32.Device(num_sms)
            found = plan_f32.plan(structure, m, n, k, with_preact, arch, sms)
    except (BuildError, OSError) as error:
        _warn(f"GEMM and epilogue run as two kernels, which is slower: {error}")
        return "hybrid"
    return found or "hybrid"


@lru_cache(maxsize=16)
def _warn(message: str) -> None:
    warnings.warn(f"fusepass: {message}", stacklevel=2)
