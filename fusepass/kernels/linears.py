"""Several Linears of one x in one kernel: what the plan says, and its answer, built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .build.toolchain import BuildError, SpillError
from .library import warn_slower

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Together:
    """How several Linears of one x run.

    Attributes:
        one: whether in one launch.
        seconds: of that, by the model.
        apart: of one after the other.
    """

    one: bool
    seconds: float
    apart: float


def weigh(
    dtype: torch.dtype,
    m: int,
    widths: Sequence[int],
    k: int,
    w_is_kn: bool,
    x_is_km: bool,
    num_sms: int,
) -> Together | None:
    """What the plan says of x [m, k] and weights [n, k] of ``widths``; None where there is no such
    kernel."""
    from .plan import several
    from .plan.problem import BFLOAT16, FLOAT16, plan_code

    if plan_code(dtype) not in (FLOAT16, BFLOAT16):
        return None
    question = (m, tuple(widths), k, w_is_kn, num_sms, x_is_km)
    times = several.times(*question)
    return None if times is None else Together(several.choose(*question) is not None, *times)


def plan(
    dtype: int, m: int, widths: Sequence[int], k: int, w_is_kn: bool, x_is_km: bool, device: int
) -> str:
    """See ``fusepass::_plan_linears`` in ``fusepass/op/linears.py``.

    Returns:
        "<config>|<cubin's path>|<kernel's name>", or "hybrid": one after the other.
    """
    import torch

    from .build.build import device_arch
    from .plan import several

    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    where = (device_arch(device), num_sms)
    try:
        return several.plan(dtype, m, widths, k, w_is_kn, x_is_km, *where) or "hybrid"
    except SpillError:
        return "hybrid"
    except (BuildError, OSError) as error:
        warn_slower("Linears of one input run one after the other", error)
        return "hybrid"
