"""What the op asks of the kernels at run time; it never fails a model that torch could run."""

from __future__ import annotations

import threading
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING

from .toolchain import BuildError

if TYPE_CHECKING:
    import torch

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
        dtype: gemm.h's DType, or 4 for float32 that may be rounded to TF32.
        m, n, k: of x [m, k] and w [n, k].
        w_is_kn: whether w is stored [k, n].
        with_preact: whether z is wanted too.
        device: index of the CUDA device.
    """
    import torch

    from .build import device_arch

    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    problem = (structure, dtype, m, n, k, w_is_kn, with_preact)
    try:
        return plan_for(*problem, device_arch(device), num_sms) or "hybrid"
    except (BuildError, OSError) as error:
        _warn(f"GEMM and epilogue run as two kernels, which is slower: {error}")
        return "hybrid"


def plan_for(
    structure: str,
    dtype: int,
    m: int,
    n: int,
    k: int,
    w_is_kn: bool,
    with_preact: bool,
    arch: str,
    num_sms: int,
) -> str | None:
    """As ``plan_kernel`` for any architecture, there or not; None where the hybrid is chosen.

    Raises:
        BuildError: if the kernel cannot be built.
    """
    from . import plan, plan_f32, plan_tf32

    if dtype == 0:
        sms = plan_f32.Device(num_sms)
        return plan_f32.plan(structure, m, n, k, with_preact, arch, sms)
    if dtype == 4:
        return plan_tf32.plan(structure, m, n, k, w_is_kn, with_preact, arch, num_sms)
    if dtype in (1, 2):
        return plan.plan(structure, dtype == 2, m, n, k, w_is_kn, with_preact, arch, num_sms)
    return None


def chosen(dtype: torch.dtype, m: int, n: int, k: int, w_is_kn: bool, num_sms: int) -> bool:
    """Whether the plan prefers one kernel on Hopper to two, at torch's present precision."""
    import torch

    from . import plan, plan_f32, plan_tf32

    if dtype != torch.float32:
        return plan.choose(m, n, k, w_is_kn, False, num_sms) is not None
    if torch.get_float32_matmul_precision() == "highest":
        return plan_f32.choose(m, n, k, False, plan_f32.Device(num_sms)) is not None
    return plan_tf32.choose(m, n, k, w_is_kn, num_sms) is not None


@lru_cache(maxsize=16)
def _warn(message: str) -> None:
    warnings.warn(f"fusepass: {message}", stacklevel=2)
