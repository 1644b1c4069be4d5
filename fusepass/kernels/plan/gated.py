"""16-bit GEMM with two weights of one x: which configuration of the kernel, or several kernels.

To the tensor cores it is one GEMM over the rows of both weights, so the model of ``model.py``
is asked about that: its choices were 0.6% behind the best of 47 forms over 32 problems, and 2.7% at
most (benchmarks/NOTES.md).
"""

from __future__ import annotations

from functools import lru_cache

from ...ir import Epilogue
from ..build.build import build_first
from .configs import Config
from .demand import Demand
from .model import gated_seconds, separate_seconds
from .problem import BFLOAT16, Problem, ir_dtype
from .sm90 import defines, fits, possible, why_not

SIMPLE = Demand(gated=True)

# Half of a tile's rows of the weight are the second weight's: blocks of 64 by turns if swapped, so
# that a consumer has two or more, otherwise the halves of B's rows, 16 of which make a unit.
# Cooperative tiles, whose epilogues nothing hides, are for one or two rounds of tiles. Groups of 4
# to 40 clusters differ by 1%.
CONFIGS = (
    Config(128, 192, 4, 1, True, 16),
    Config(128, 192, 4, 2, True, 16),
    Config(128, 192, 5, 1, True, 16),
    Config(128, 192, 5, 2, True, 16),
    Config(128, 192, 4, 1, True, 16, swapped=True),
    Config(128, 192, 4, 2, True, 16, swapped=True),
    Config(128, 192, 5, 1, True, 16, swapped=True),
    Config(128, 192, 5, 2, True, 16, swapped=True),
    Config(128, 200, 4, 1, True, 16, swapped=True),
    Config(128, 208, 4, 2, True, 12),
    Config(128, 176, 4, 2, True, 12),
    Config(128, 160, 5, 2, True, 16),
    Config(128, 160, 5, 1, True, 16, swapped=True),
    Config(128, 160, 5, 2, True, 16, swapped=True),
    Config(192, 128, 4, 2, True, 12, beside=True),
    Config(128, 128, 6, 1, True, 16),
    Config(128, 128, 6, 2, True, 16),
    Config(64, 128, 8, 1, True, 8),
    Config(64, 96, 8, 1, True, 8),
    Config(128, 256, 4, 1, False, 16),
    Config(128, 224, 4, 1, False, 12),
)


def candidates(
    m: int,
    n: int,
    k: int,
    w_is_kn: bool = False,
    demand: Demand = SIMPLE,
    num_sms: int = 132,
    x_is_km: bool = False,
) -> list[Config]:
    """Configurations that can run the problem, the fastest by the model first.

    Args:
        m, n, k: of x [m, k] and of each weight [n, k].
        w_is_kn, x_is_km: whether the weights are stored [k, n], and x [k, m].
        demand: what the epilogue reads and stores.
        num_sms: the device's multiprocessors.
    """
    runs = (c for c in CONFIGS if why_not(c, demand) is None)
    some = (c for c in runs if fits(c, (m, 2 * n, k), w_is_kn, x_is_km, num_sms, demand))
    return sorted(some, key=lambda c: gated_seconds(c, m, n, k, demand, num_sms))


@lru_cache(maxsize=4096)
def choose(
    m: int,
    n: int,
    k: int,
    w_is_kn: bool = False,
    demand: Demand = SIMPLE,
    num_sms: int = 132,
    x_is_km: bool = False,
) -> Config | None:
    """As ``candidates``: the configuration, or None where several kernels are as fast."""
    # With a third tensor, or sums, no kernel of two weights has been run.
    if demand.mats or demand.col_bytes or demand.row_bytes or demand.sums:
        return None
    if not possible(m, n, k, x_is_km):
        return None
    some = candidates(m, n, k, w_is_kn, demand, num_sms, x_is_km)
    if not some:
        return None
    ours = gated_seconds(some[0], m, n, k, demand, num_sms)
    return some[0] if ours <= separate_seconds(m, n, k, demand, num_sms) else None


def plan(problem: Problem, arch: str, num_sms: int) -> str | None:
    """The answer of ``fusepass::_plan`` for a 16-bit dtype, built; None for several kernels.

    Raises:
        BuildError: if the kernel cannot be built.
    """
    p = problem
    demand = Demand.of(Epilogue.parse(p.epilogue), ir_dtype(p.dtype), p.with_preact, p.group)
    if arch != "90a" or isinstance(demand, str):
        return None
    question = (p.m, p.n, p.k, p.w_is_kn, demand, num_sms, p.x_is_km)
    config = choose(*question)
    if config is None:
        return None
    ranked = [config, *(c for c in candidates(*question) if c != config)]
    build = (p.dtype == BFLOAT16, p.w_is_kn, p.with_preact, p.x_is_km)
    choices = [defines(c, *build) for c in ranked]
    index, cubin = build_first("sm90/gemm_sm90.cu", choices, arch, p.include)
    return f"{ranked[index]}|{cubin}|fusepass_gemm"
