"""One weight of several products, as that of queries, keys and values: whole, or each for itself.

Shapes in, a decision out, by the model of ``model.py``; nothing here touches a device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from ...ir import Epilogue
from .demand import Demand
from .model import RESIDUAL_ALLOWANCE, cublas_seconds, pointwise_seconds, seconds
from .problem import BFLOAT16, FLOAT16, ir_dtype, plan_code
from .sm90 import choose

if TYPE_CHECKING:
    import torch


@lru_cache(maxsize=4096)
def pay(
    dtype: torch.dtype, m: int, k: int, parts: tuple[tuple[int, str], ...], num_sms: int = 132
) -> bool:
    """Whether a product for each of ``parts`` takes no longer than one and a kernel behind it.

    Args:
        dtype: of x; of another than 16 bits they do not pay.
        m, k: of x [m, k].
        parts: of the weight's rows, how many, and the text of an epilogue, which may be empty.
        num_sms: the device's multiprocessors.
    """
    code = plan_code(dtype)
    if code not in (FLOAT16, BFLOAT16):
        return False
    site = ir_dtype(code)
    apart = bytes_behind = 0.0
    for n, text in parts:
        program = Epilogue.parse(text)
        if not program.nodes:
            apart += _alone(m, n, k, num_sms)
            continue
        demand = Demand.of(program, site)
        config = None if isinstance(demand, str) else choose(m, n, k, False, demand, num_sms)
        if config is None or isinstance(demand, str):
            return False
        apart += seconds(config, m, n, k, demand, num_sms)
        bytes_behind += m * n * (demand.traffic + 2)
    whole = _alone(m, sum(n for n, _ in parts), k, num_sms)
    return apart <= whole + pointwise_seconds(bytes_behind)


def _alone(m: int, n: int, k: int, num_sms: int) -> float:
    """The modelled time of a product without an epilogue, whoever runs it.

    What is known better of products alone is left out, as ``sm90.choose`` does beside matrices.
    """
    framework = RESIDUAL_ALLOWANCE * cublas_seconds(m, n, k, num_sms)
    bare = Demand.plain(bare=True)
    config = choose(m, n, k, False, bare, num_sms)
    if config is None:
        return framework
    return min(framework, seconds(config, m, n, k, bare, num_sms))
