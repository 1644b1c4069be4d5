"""16-bit GEMM and epilogue in one launch: which configuration of the kernel, or the hybrid.

Shapes in, a configuration out, by the model of ``model.py``; nothing here touches a device.
"""

from __future__ import annotations

import math
from functools import lru_cache

from ...ir import Epilogue
from ..build.build import build_first
from .alone import alone_seconds, is_faster, is_taken
from .apart import first_taken, stand_apart
from .configs import CONFIGS, Config, configs_for
from .demand import Demand
from .model import RESIDUAL_ALLOWANCE, absorbed_seconds, cublas_seconds, hybrid_seconds, seconds
from .narrow import NARROW_TILES, narrow
from .problem import BFLOAT16, Problem, ir_dtype
from .rank import rank

__all__ = [
    "CONFIGS", "Config", "candidates", "choose", "configs_for", "hybrid_seconds", "plan", "seconds",
]  # fmt: skip

_SIMPLE = Demand()
_MIN_M = 65  # fewer rows are bound by memory: narrow.py knows them


def candidates(
    m: int,
    n: int,
    k: int,
    w_is_kn: bool,
    demand: Demand = _SIMPLE,
    num_sms: int = 132,
    x_is_km: bool = False,
) -> list[Config]:
    """Configurations that can run the problem, the fastest by the model first."""
    runs = (c for c in configs_for(demand) if why_not(c, demand) is None)
    some = (c for c in runs if fits(c, (m, n, k), w_is_kn, x_is_km, num_sms, demand))
    orders = (w_is_kn, x_is_km)
    if demand.bare:
        return sorted(some, key=lambda c: alone_seconds(c, m, n, k, num_sms, orders))
    ranked = sorted(some, key=lambda c: rank(c, (m, n, k), demand, num_sms, orders))
    return first_taken(ranked, (m, n, k), demand, num_sms, orders)


def why_not(config: Config, demand: Demand) -> str | None:
    """Why there is no such kernel, if there is none."""
    if config.turns > 2 and demand.traffic > 2:
        return "three consumers have no registers for a second matrix"
    if demand.sums and (not config.swapped or config.split > 1):
        return "columns are summed along the accumulators, which are the output's rows if swapped"
    if demand.group % config.finished(demand)[0 if not config.swapped else 1]:
        return "a consumer's rows of a tile lie in several groups"
    if demand.gated and config.split > 1:
        return "two weights' sums would be exchanged"
    if demand.gated and config.swapped and config.blocks % 2:
        return "two weights take turns every 64 rows"
    if demand.gated and not config.swapped and config.tile_n % 16:
        return "two weights share a tile"
    if not config.chunk_units(demand):
        return "shared memory has no room for what is read and stored"
    return _why_no_heads(config, demand) if demand.head else None


def _why_no_heads(config: Config, demand: Demand) -> str | None:
    """Why no thread has whole heads, in units of 8 columns, or what is read of them is torn."""
    if config.swapped or config.split > 1:
        return "a thread has all columns of a row of a tile only where that is not transposed"
    units = config.chunk_units(demand)
    if config.tile_n % demand.head or (units != 8 and demand.head % (8 * units)):
        return "a tile does not hold whole heads, or a head whole chunks"
    return "a head is no units of 8 columns, or what is exchanged no pairs" if demand.torn else None


def fits(
    config: Config,
    shape: tuple[int, int, int],
    w_is_kn: bool,
    x_is_km: bool,
    num_sms: int,
    demand: Demand = _SIMPLE,
) -> bool:
    """Whether ``config`` is for such sizes and such a device; n is of all weights together."""
    m, n, k = shape
    rows, columns, b_is_kn = (n, m, x_is_km) if config.swapped else (m, n, w_is_kn)
    weights = 2 if demand.gated and not config.swapped else 1
    if b_is_kn and config.tile_n % (64 * weights):
        return False  # boxes of 64 columns of wgmma's B operand
    if (config.split > 1 and k < 64 * config.split) or num_sms < config.cluster * config.split:
        return False
    one = columns <= config.tile_n if config.beside else rows <= config.tile_m
    return config.cluster == 1 or not one


def possible(m: int, n: int, k: int, x_is_km: bool = False) -> bool:
    """Whether the kernel takes the sizes, and enough rows to be worth it.

    What is stored row after row has rows of whole 16 bytes: of m where x is stored [k, m].
    """
    whole = n % 8 == 0 and k % 8 == 0 and not (x_is_km and m % 8)
    return m >= _MIN_M and n > 0 and k > 0 and whole


@lru_cache(maxsize=4096)
def choose(
    m: int,
    n: int,
    k: int,
    w_is_kn: bool = False,
    demand: Demand = _SIMPLE,
    num_sms: int = 132,
    x_is_km: bool = False,
    spared: float | None = None,
    biased: bool = False,
) -> Config | None:
    """The configuration for x [m, k] and w [n, k], or None where the framework's is as fast.

    Without an epilogue it must be faster than the framework's GEMM alone.

    Args:
        spared: where a next kernel, not one of its own, would compute the epilogue: how many
            matrices of m x n and 16 bits less that kernel has to read and write behind ours.
        biased: as of a ``Problem``.
    """
    if demand.gated:  # two weights are gated.py's
        return None
    if m < _MIN_M:
        # Beside a matrix none of these has been run.
        left = w_is_kn or x_is_km or demand.mats
        few = None if left else narrow(m, n, k, num_sms, demand.bare)
        return few if few is not None and why_not(few, demand) is None else None
    if not possible(m, n, k, x_is_km):
        return None
    some = candidates(m, n, k, w_is_kn, demand, num_sms, x_is_km)
    if not some:
        return None
    orders = (w_is_kn, x_is_km)
    if demand.bare:
        taken = is_taken(some[0], (m, n, k), num_sms, orders, biased)
        return some[0] if taken else None
    ours = seconds(some[0], m, n, k, demand, num_sms, orders)
    if spared is None:
        return some[0] if ours <= hybrid_seconds(m, n, k, num_sms, demand) else None
    gemm = cublas_seconds(m, n, k, num_sms)
    # What is known better of products alone is as true of those that read a matrix beside them, so
    # these two are compared without it.
    bare = Demand.plain(bare=True)
    others = candidates(m, n, k, w_is_kn, bare, num_sms, x_is_km)
    alone = min((seconds(c, m, n, k, bare, num_sms, orders) for c in others), default=math.inf)
    spare = alone if is_faster(alone, gemm) else math.inf
    gemm = min(RESIDUAL_ALLOWANCE * gemm, spare)
    return some[0] if ours <= absorbed_seconds(gemm, m, n, spared) else None


def defines(
    config: Config,
    bf16: bool,
    w_is_kn: bool,
    with_preact: bool,
    x_is_km: bool = False,
    apart: bool = False,
) -> dict[str, object]:
    """The macros of one build of gemm_sm90.cu; ``apart``: the epilogue's statements stand apart."""
    a_is_km, b_is_kn = (w_is_kn, x_is_km) if config.swapped else (x_is_km, w_is_kn)
    return {
        "FUSEPASS_TILE_M": config.tile_m,
        "FUSEPASS_TILE_N": config.tile_n,
        "FUSEPASS_UNITS": config.tile_n // 8,
        "FUSEPASS_RING": config.stages,
        "FUSEPASS_CLUSTER": config.cluster,
        "FUSEPASS_PINGPONG": int(config.pingpong),
        "FUSEPASS_CONSUMERS": config.consumers,
        "FUSEPASS_SWAPPED": int(config.swapped),
        "FUSEPASS_SHARES_X": int(config.beside),
        "FUSEPASS_SPLIT": config.split,
        "FUSEPASS_BF16": int(bf16),
        "FUSEPASS_X_IS_KM": int(a_is_km),
        "FUSEPASS_W_IS_KN": int(b_is_kn),
        "FUSEPASS_PREACT": int(with_preact),
        **({"FUSEPASS_APART": 1} if apart else {}),
    }


def plan(problem: Problem, arch: str, num_sms: int) -> str | None:
    """The answer of ``fusepass::_plan`` for a 16-bit dtype, built; None for the hybrid.

    What ``max_autotune`` found on this machine goes before the model.

    Raises:
        BuildError: if the kernel cannot be built.
    """
    from . import winners

    p = problem
    demand = Demand.of(Epilogue.parse(p.epilogue), ir_dtype(p.dtype), p.with_preact, p.group)
    if arch != "90a" or isinstance(demand, str):
        return None
    question = (p.m, p.n, p.k, p.w_is_kn, demand, num_sms, p.x_is_km)
    tuned, config = winners.recall(p)
    if not tuned:
        config = choose(*question, biased=p.biased)
    if config is None:
        return None
    others = (
        candidates(*question) if p.m >= _MIN_M else [t for t in NARROW_TILES if p.m <= t.tile_n]
    )
    ranked = [config, *(c for c in others if c != config and why_not(c, demand) is None)]
    build = (p.dtype == BFLOAT16, p.w_is_kn, p.with_preact, p.x_is_km)
    apart = [stand_apart(c, (p.m, p.n, p.k), demand, num_sms) for c in ranked]
    choices = [defines(c, *build, a) for c, a in zip(ranked, apart, strict=True)]
    index, cubin = build_first("sm90/gemm_sm90.cu", choices, arch, p.include)
    return f"{ranked[index]}|{cubin}|fusepass_gemm"
