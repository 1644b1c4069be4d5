"""16-bit GEMMs of several weights of one x: which configuration runs them in one launch, or none.

To the tensor cores it is one GEMM over the columns of all weights, each weight's in whole tiles, so
the model of ``model.py`` is asked about that. Up to 16 rows go in the strips of ``few.py``, where a
launch less is most of what is gained.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ...ir import Epilogue
from ...ir.emit import emit
from ..build.build import build_first
from . import few, sm90
from .alone import alone_seconds
from .configs import CONFIGS, Config
from .demand import Demand
from .model import cublas_seconds
from .narrow import MOST_ROWS
from .problem import BFLOAT16, FLOAT16, ir_dtype

_BARE = Demand.plain(bare=True)
# Times the model where tiles are of 64 rows: 1.02 to 1.29 of it in twenty launches, those of others
# 0.83 to 1.08, of which it knew the order (benchmarks/NOTES.md).
_LOW = 1.15


def walked(config: Config, widths: Sequence[int]) -> int:
    """Columns of all weights, [n, k] of ``widths``, each weight's in whole tiles."""
    tile = config.tile_m if config.swapped else config.tile_n
    return sum(-(-n // tile) * tile for n in widths)


def why_not(config: Config) -> str | None:
    """Why there is no kernel of several weights, if there is none."""
    if config.split > 1:
        return "K is split where tiles are few, of which several weights have more"
    if config.turns > 2:
        return "three consumers have no registers for the weight that a tile is of"
    return sm90.why_not(config, _BARE)


def candidates(
    m: int,
    widths: Sequence[int],
    k: int,
    w_is_kn: bool = False,
    num_sms: int = 132,
    x_is_km: bool = False,
) -> list[Config]:
    """Configurations that can run the problem, the fastest by the model first.

    Args:
        m, k: of x [m, k].
        widths: n of each weight [n, k].
        w_is_kn, x_is_km: whether the weights are stored [k, n], and x [k, m].
        num_sms: the device's multiprocessors.
    """
    orders, runs = (w_is_kn, x_is_km), [c for c in CONFIGS if why_not(c) is None]
    sizes = {c: (m, walked(c, widths), k) for c in runs}
    some = (c for c in runs if sm90.fits(c, sizes[c], *orders, num_sms, _BARE))
    return sorted(some, key=lambda c: seconds(c, m, widths, k, num_sms, orders))


def seconds(
    config: Config,
    m: int,
    widths: Sequence[int],
    k: int,
    num_sms: int,
    orders: tuple[bool, bool],
) -> float:
    """The modelled time of one launch; ``orders``: whether w is stored [k, n], and x [k, m]."""
    alone = alone_seconds(config, m, walked(config, widths), k, num_sms, orders)
    return alone * (_LOW if config.tile_m == 64 else 1.0)


@lru_cache(maxsize=4096)
def choose(
    m: int,
    widths: tuple[int, ...],
    k: int,
    w_is_kn: bool = False,
    num_sms: int = 132,
    x_is_km: bool = False,
) -> Config | few.Config | None:
    """As ``candidates``: the configuration, or None where one after the other they are as fast."""
    if m <= MOST_ROWS:
        return None if x_is_km else few.several(m, widths, k, w_is_kn)
    modelled = times(m, widths, k, w_is_kn, num_sms, x_is_km)
    if modelled is None or modelled[0] > modelled[1]:
        return None
    return candidates(m, widths, k, w_is_kn, num_sms, x_is_km)[0]


@lru_cache(maxsize=4096)
def times(
    m: int,
    widths: tuple[int, ...],
    k: int,
    w_is_kn: bool = False,
    num_sms: int = 132,
    x_is_km: bool = False,
) -> tuple[float, float] | None:
    """The modelled seconds of the fastest configuration, and of each product by itself; None where
    the kernel does not take the sizes."""
    if m <= MOST_ROWS:
        if choose(m, widths, k, w_is_kn, num_sms, x_is_km) is None:
            return None
        return few.seconds(sum(widths), k), sum(few.seconds(n, k) for n in widths)
    if not all(sm90.possible(m, n, k, x_is_km) for n in widths):
        return None
    some = candidates(m, widths, k, w_is_kn, num_sms, x_is_km)
    if not some:
        return None
    orders = (w_is_kn, x_is_km)
    one = seconds(some[0], m, widths, k, num_sms, orders)
    return one, sum(_apart(m, n, k, num_sms, orders) for n in widths)


def _apart(m: int, n: int, k: int, num_sms: int, orders: tuple[bool, bool]) -> float:
    """The modelled time of one of the products alone, by whom it would be run."""
    w_is_kn, x_is_km = orders
    config = sm90.choose(m, n, k, w_is_kn, _BARE, num_sms, x_is_km)
    if config is None:
        return cublas_seconds(m, n, k, num_sms)
    return alone_seconds(config, m, n, k, num_sms, orders)


def defines(config: Config, bf16: bool, w_is_kn: bool, x_is_km: bool = False) -> dict[str, object]:
    """The macros of one build of gemm_sm90.cu."""
    return sm90.defines(config, bf16, w_is_kn, False, x_is_km) | {"FUSEPASS_SEVERAL": 1}


def plan(
    dtype: int,
    m: int,
    widths: Sequence[int],
    k: int,
    w_is_kn: bool,
    x_is_km: bool,
    arch: str,
    num_sms: int,
) -> str | None:
    """The answer of ``fusepass::_plan_linears``, built; None for one after the other.

    Raises:
        BuildError: if the kernel cannot be built.
    """
    question = (m, tuple(widths), k, w_is_kn, num_sms, x_is_km)
    narrow = dtype in (FLOAT16, BFLOAT16)
    config = choose(*question) if arch == "90a" and narrow else None
    if config is None:
        return None
    include = emit(Epilogue(), ir_dtype(dtype))
    if isinstance(config, few.Config):
        built = [config.defines(dtype == BFLOAT16, several=True)]
        _, cubin = build_first(config.source, built, arch, include)
        return f"{config}|{cubin}|fusepass_few_rows"
    ranked = [config, *(c for c in candidates(*question) if c != config)]
    choices = [defines(c, dtype == BFLOAT16, w_is_kn, x_is_km) for c in ranked]
    index, cubin = build_first("sm90/gemm_sm90.cu", choices, arch, include)
    return f"{ranked[index]}|{cubin}|fusepass_gemm"
