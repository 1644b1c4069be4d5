"""The CUDA side: everything here is built or loaded by the first call that needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .linears import Together

__all__ = [
    "describe",
    "fuses",
    "fuses_gated",
    "fuses_program",
    "has_fused_gemm",
    "hopper_sms",
    "linears_together",
    "load_binding",
    "parts_pay",
    "plan_kernel",
    "plan_linears",
    "pointwise_kernel",
]


def hopper_sms(device: torch.device) -> int | None:
    """The multiprocessors of a GPU of compute capability 9.0; None for any other device."""
    import torch

    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return None
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def has_fused_gemm(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether one kernel can run GEMM and epilogue together on this device, for this dtype.

    Where it is False the op still runs: the framework's GEMM, then one pointwise kernel.
    """
    import torch

    wanted = dtype in (torch.float16, torch.bfloat16, torch.float32)
    return wanted and hopper_sms(device) is not None


def fuses(
    device: torch.device,
    dtype: torch.dtype,
    m: int,
    n: int,
    k: int,
    w_is_kn: bool,
    x_is_km: bool = False,
    bare: bool = False,
    biased: bool = False,
) -> bool:
    """Whether the plan runs x [m, k] and w [n, k] as one kernel on ``device``; builds nothing.

    ``w_is_kn`` and ``x_is_km`` say whether they are stored [k, n] and [k, m], ``bare`` whether the
    epilogue is empty, ``biased`` whether a bias is then added.
    """
    sms = hopper_sms(device) if has_fused_gemm(device, dtype) else None
    if sms is None:
        return False
    from .library import chosen

    return chosen(dtype, m, n, k, w_is_kn, sms, x_is_km, bare, biased)


def fuses_program(
    device: torch.device,
    dtype: torch.dtype,
    m: int,
    n: int,
    k: int,
    w_is_kn: bool,
    x_is_km: bool,
    epilogue: str,
    spared: float | None = None,
    group: int = 0,
) -> bool:
    """As ``fuses`` with an epilogue that reads tensors beside z.

    Where a next kernel would compute it too, ``spared`` is how many matrices of m x n and 16 bits
    less that one reads and writes behind ours; None where nothing but a kernel of its own would.
    ``group``: rows of the smallest group that has a col operand's numbers of its own, or 0.
    """
    sms = hopper_sms(device) if has_fused_gemm(device, dtype) else None
    if sms is None:
        return False
    from .library import chosen_program

    return chosen_program(dtype, m, n, k, w_is_kn, sms, x_is_km, epilogue, spared, group)


def fuses_gated(
    device: torch.device,
    dtype: torch.dtype,
    m: int,
    n: int,
    k: int,
    w_is_kn: bool,
    x_is_km: bool = False,
    stores: int = 1,
) -> bool:
    """As ``fuses`` with two weights [n, k] and ``stores`` outputs of m x n."""
    sms = hopper_sms(device) if has_fused_gemm(device, dtype) else None
    if sms is None:
        return False
    from .library import chosen_gated

    return chosen_gated(dtype, m, n, k, w_is_kn, sms, x_is_km, stores)


def parts_pay(
    device: torch.device, dtype: torch.dtype, m: int, k: int, parts: tuple[tuple[int, str], ...]
) -> bool:
    """Whether one kernel for each of ``parts``, columns and an epilogue's text, is as fast as x
    [m, k] times the whole weight, and a kernel that computes the epilogues; of 16-bit dtypes."""
    sms = hopper_sms(device) if has_fused_gemm(device, dtype) else None
    if sms is None:
        return False
    from .plan.parts import pay

    return pay(dtype, m, k, parts, sms)


def linears_together(
    device: torch.device,
    dtype: torch.dtype,
    m: int,
    widths: tuple[int, ...],
    k: int,
    w_is_kn: bool,
    x_is_km: bool = False,
) -> Together | None:
    """Whether x [m, k] is multiplied by several weights [n, k], of ``widths``, in one launch, and
    how long that takes; None where no kernel here can."""
    sms = hopper_sms(device) if has_fused_gemm(device, dtype) else None
    if sms is None:
        return None
    from .linears import weigh

    return weigh(dtype, m, widths, k, w_is_kn, x_is_km, sms)


def load_binding() -> bool:
    """Loads the C++ kernels, building them first if this machine has not; True if they run."""
    from .library import load

    return load()


def plan_kernel(*problem: Any) -> str:
    """The kernel for a problem; see ``fusepass::_plan`` in ``fusepass/op/linear.py``."""
    from .library import plan_kernel
    from .plan.problem import Problem

    *what, device = problem
    return plan_kernel(Problem(*what), device)


def plan_linears(*problem: Any) -> str:
    """See ``fusepass::_plan_linears`` in ``fusepass/op/linears.py``."""
    from .linears import plan

    return plan(*problem)


def describe(epilogue: str, dtype: int, with_preact: bool) -> tuple[Any, ...]:
    """See ``fusepass::_describe`` in ``fusepass/op/linear.py``."""
    from .library import describe

    return describe(epilogue, dtype, with_preact)


def pointwise_kernel(
    epilogue: str, dtype: int, bitwise: bool, host: int, device: int
) -> tuple[str, bool, list[float]]:
    """See ``fusepass::_pointwise`` in ``fusepass/op/linear.py``."""
    from .library import pointwise_kernel

    return pointwise_kernel(epilogue, dtype, bitwise, host, device)
