"""The time of the 16-bit GEMM on Hopper, and of the framework's own, by shape.

A small model of a persistent kernel in cycles of one multiprocessor, fitted to the measurements in
benchmarks/NOTES.md. Nothing here touches a device.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from .configs import Config
from .demand import Demand

_SIMPLE = Demand()

# Cycles of a multiprocessor unless said otherwise, fitted to benchmarks/NOTES.md's measurements.
_MACS = 2048  # of 16-bit operands a multiprocessor makes in a cycle
_RATES = 1.599e9, 1.389e9  # cycles a second: of a short problem, of a long one at the power limit
_SHORT, _LONG = 2.0**33, 2.0**37  # FLOP of a problem at which the clock starts and ends to fall
_IDLE = 0.256  # the long clock falls with this power of the share of all cycles that make products
_POWER_OF_LOADS = 4.37  # how much of the long clock a tile's loads take, over its loads an element
_LAUNCH = 1.61e-6  # seconds before the first cycle
_CLUSTER = 1100.0  # of a launch in clusters of CTAs
_OVERHEAD_COLUMNS = 5.83  # a narrow tile is as slow as if it were this much wider
_STEP = 169.0  # of 64 K, over the stages of the ring: waits for loads, barriers
# Times a step of tiles of 64 rows, as they lie and swapped, where a multiprocessor has more than so
# many and more than so many are in a line: 1.1 to 1.45 in nine problems (benchmarks/NOTES.md).
_LOW_TILES = 1.15, 1.3
_FEW_ROUNDS, _FEW_IN_LINE = 3, (16, 7)
_SHARED = 168.0  # bytes a cycle into and out of shared memory
_ROW = 1.55, 3.73  # to load a row of 64 K that starts at a sector of memory, and one that does not
_SECTOR = 16  # elements
_ELEMENT = 16.8  # of the epilogue an element and thread: stages, packing, store
_ELEMENT_BESIDE = 45.5  # and beside the other consumer's products, which take the register ports
_ELEMENT_BARE = 6.8, 10.9  # the same two without stages: packing and store
_CROWD = 1.49, 1.55  # times those beside, where three consumers take turns: with stages, without
_TOGETHER = 0.399  # what each more consumer that shares the tile adds to an element
_BROKEN_LINES = 1.11  # times an element where boxes of output are not whole lines of memory
_CHUNK = 184.0  # and a chunk besides, whose warps wait for one another
_BIAS = 4.96  # a column, before a tile's products, where the bias lies along the columns
# Times those cycles, with z: where a tile has 128 rows and its boxes are whole lines, and not.
_PREACT = 1.4, 2.2


class Costs(NamedTuple):
    """Of an epilogue with operands: cycles of an instruction and of an element of a matrix, which
    alone waits for memory, each alone and beside the products; times an element, swapped."""

    work: tuple[float, float]
    mat: tuple[float, float]
    transposed: float


COSTS = Costs((0.94, 4.2), (19.7, 12.6), 0.94)
_LATENCY = 1840.0  # of a load beside matrices: what the ring has ahead must cover it
_TILE_END = 348.0  # of an epilogue besides: draining wgmma, bias, barriers, last store
_EXCHANGE = 671.0, 45.2  # of a cluster that splits K: its barriers, and bytes received a cycle
# The share of all multiprocessors that clusters of 1, 2, ... CTAs fill: they lie in groups.
_REACH = 1.0, 1.0, 0.88, 0.9, 0.8, 0.77
_OVERLAP = 1.79  # of products and memory: infinite, if neither slowed the other
_BANDWIDTH = 4.34e12  # bytes a second of a stream through device memory
# Beside the framework's GEMM the model has kernels that read a matrix slower than measured: by
# 1.059 in the mean of six problems, by more than this in five (benchmarks/NOTES.md).
RESIDUAL_ALLOWANCE = 1.05
# The framework's GEMM picks among these, and may split K; nothing hides the end of its tiles.
_CUBLAS_TILES = (
    (64, 64),
    (192, 192),
    *((128, n) for n in range(64, 257, 16)),
    *((m, 128) for m in range(64, 257, 16)),
)
_CUBLAS_WAYS = tuple((tile, split) for tile in _CUBLAS_TILES for split in (1, 2, 4))
_CUBLAS_RATES = 1.591e9, 1.299e9
_CUBLAS_LAUNCH = 2.491e-6
_CUBLAS_STEP = 7.19
_CUBLAS_TILE_END = 117.0, 13.1
_CUBLAS_SPLIT_END = 1620.0
_POINTWISE_LAUNCH = 1.5e-6  # seconds of one more kernel
_CAUTION = 1.2  # the model is off by 8%: two kernels are for where they are faster beyond doubt


def seconds(
    config: Config,
    m: int,
    n: int,
    k: int,
    demand: Demand = _SIMPLE,
    num_sms: int = 132,
    orders: tuple[bool, bool] = (False, False),
    costs: Costs = COSTS,
) -> float:
    """The modelled time of one call with ``config``.

    Args:
        config: which kernel.
        m, n, k: of x [m, k] and w [n, k].
        demand: what the epilogue reads and stores.
        num_sms: the device's multiprocessors.
        orders: whether w is stored [k, n], and x [k, m].
        costs: of the epilogue.
    """
    ctas = config.cluster * config.split
    rounds = _ceil(_clusters(config, m, n), _at_once(ctas, num_sms))  # one multiprocessor's tiles
    step = _step(config, m, n, k, orders)
    if rounds > _FEW_ROUNDS and _is_low(config, m, n):
        step *= _LOW_TILES[config.swapped]
    if demand.mats:
        step = (step**12 + (_LATENCY / (config.stages - 1)) ** 12) ** (1 / 12)  # the longer one
    mainloop = _ceil(_ceil(k, 64), config.split) * step
    end, end_beside = _epilogue(config, demand, costs)
    start = 0.0 if config.swapped or (demand.bare and any(orders)) else _BIAS * config.tile_n
    if config.pingpong:
        # A consumer's next tile begins when the others' products end, or its own epilogue if later.
        turns = config.turns
        lap = mainloop + max((turns - 1) * mainloop, end_beside + start)
        before = (rounds - 1) // turns * lap + (rounds - 1) % turns * mainloop
    else:
        before = (rounds - 1) * (mainloop + end + start)
    cycles = (ctas > 1) * _CLUSTER + start + before + mainloop + end
    busy = m * n * k / (_MACS * num_sms * cycles)
    loads = _rows_loaded(config) / (config.tile_m * config.tile_n)
    traffic = 2 * (m * k + n * k) + m * n * demand.traffic
    return _LAUNCH + _beside(cycles / _rate(m, n, k, _RATES, busy, loads), traffic / _BANDWIDTH)


def _at_once(ctas: int, num_sms: int) -> int:
    """How many clusters of so many CTAs run together."""
    return max(1, int(num_sms * _REACH[min(ctas, len(_REACH)) - 1] / ctas))


def _clusters(config: Config, m: int, n: int) -> int:
    """How many clusters of tiles cover the output."""
    rows, columns = (n, m) if config.swapped else (m, n)
    below, beside = (1, config.cluster) if config.beside else (config.cluster, 1)
    return _ceil(rows, config.tile_m * below) * _ceil(columns, config.tile_n * beside)


def _is_low(config: Config, m: int, n: int) -> bool:
    """Whether tiles of 64 rows lie below one another, and many along x's rows."""
    rows, columns = (n, m) if config.swapped else (m, n)
    line = _ceil(columns, config.tile_n) if config.swapped else _ceil(rows, config.tile_m)
    return config.tile_m == 64 and rows > config.tile_m and line > _FEW_IN_LINE[config.swapped]


def _rows_loaded(config: Config) -> float:
    """Rows of 64 K that a CTA loads for a step; what a cluster shares is loaded once."""
    if config.beside:
        return config.tile_m / config.cluster + config.tile_n
    return config.tile_m + config.tile_n / config.cluster


def _step(config: Config, m: int, n: int, k: int, orders: tuple[bool, bool]) -> float:
    """Cycles of 64 of K."""
    products = config.tile_m * (config.tile_n + _OVERHEAD_COLUMNS) * 64 / _MACS
    # wgmma reads 64 rows of x and all of w from shared memory, which TMA has written.
    read = config.tile_m / 64 * (64 + config.tile_n) + config.tile_m + config.tile_n
    w_is_kn, x_is_km = orders
    odd = (n if w_is_kn else k) % _SECTOR or (m if x_is_km else k) % _SECTOR
    loads = _rows_loaded(config) * _ROW[odd != 0]
    return max(products, read * 128 / _SHARED, loads) + _STEP / config.stages


def _epilogue(config: Config, demand: Demand, costs: Costs) -> tuple[float, float]:
    """Cycles from a tile's last product to its end, alone and beside the other's products."""
    elements = config.tile_m * config.tile_n / 128
    more = _PREACT[config.tile_n % 64 != 0 or config.tile_m == 64] - 1
    elements *= 1 + more * (sum(demand.stores) / 2 - 1)
    if not config.swapped and config.tile_n // config.split % 64:
        elements *= _BROKEN_LINES
    if not config.pingpong:
        elements *= (1 + _TOGETHER * (config.consumers - 1)) / config.consumers
    alone, beside = _element(demand, costs)
    exchange = 0.0
    if config.split > 1:
        received = config.tile_m * config.tile_n * 4 * (config.split - 1) / config.split
        exchange = _EXCHANGE[0] + received / _EXCHANGE[1]
        elements /= config.split
    if config.turns > 2:
        beside *= _CROWD[demand.bare]
    end = _TILE_END
    if config.swapped:
        columns = 8 * config.chunk_units(demand)
        end += _CHUNK * config.blocks * (config.tile_n // config.split) / columns
        elements *= costs.transposed
    return end + exchange + elements * alone, end + elements * beside


def _element(demand: Demand, costs: Costs) -> tuple[float, float]:
    """Cycles of an element, alone and beside the other's products."""
    if demand.bare:
        return _ELEMENT_BARE
    if demand.work is None:
        return _ELEMENT, _ELEMENT_BESIDE
    work, read = demand.work + 4 * demand.sums, sum(demand.mats) / 2
    each = zip(_ELEMENT_BARE, costs.work, costs.mat, strict=True)
    alone, beside = (bare + work * more + read * mat for bare, more, mat in each)
    return alone, beside


def cublas_seconds(m: int, n: int, k: int, num_sms: int = 132) -> float:
    """The modelled time of the framework's GEMM."""
    cycles = min(_cublas_cycles(m, n, k, num_sms, *how) for how in _CUBLAS_WAYS)
    busy = m * n * k / (_MACS * num_sms * cycles)
    traffic = 2 * (m * k + n * k + m * n) / _BANDWIDTH
    return _CUBLAS_LAUNCH + _beside(cycles / _rate(m, n, k, _CUBLAS_RATES, busy), traffic)


def _cublas_cycles(
    m: int, n: int, k: int, num_sms: int, tile: tuple[int, int], split: int
) -> float:
    tiles = _ceil(m, tile[0]) * _ceil(n, tile[1])
    area = tile[0] * tile[1]
    mainloop = _ceil(_ceil(k, 64), split) * (area * 64 / _MACS + _CUBLAS_STEP)
    end = _CUBLAS_TILE_END[0] + area / 128 * _CUBLAS_TILE_END[1]
    return _ceil(tiles * split, num_sms) * (mainloop + end) + (split > 1) * _CUBLAS_SPLIT_END


def hybrid_seconds(m: int, n: int, k: int, num_sms: int = 132, demand: Demand = _SIMPLE) -> float:
    """The modelled time of the framework's GEMM and the pointwise kernel, with some caution."""
    gemm = cublas_seconds(m, n, k, num_sms)
    traffic = (demand.traffic + 2) * m * n / _BANDWIDTH
    if demand.head:  # RoPE's, which was measured beside Inductor's kernel
        return RESIDUAL_ALLOWANCE * gemm + traffic + _POINTWISE_LAUNCH
    return _CAUTION * (gemm + traffic + (1 + demand.sums) * _POINTWISE_LAUNCH)


def pointwise_seconds(traffic: float) -> float:
    """The modelled time of one more kernel, which reads and writes so many bytes."""
    return traffic / _BANDWIDTH + _POINTWISE_LAUNCH


def absorbed_seconds(gemm: float, m: int, n: int, spared: float) -> float:
    """The modelled time of a GEMM alone, of ``gemm`` seconds, and of what a next kernel that
    computes the epilogue reads and writes more than behind ours: ``spared`` matrices of m x n, of
    16 bits."""
    return gemm + 2 * spared * m * n / _BANDWIDTH


def gated_seconds(
    config: Config, m: int, n: int, k: int, demand: Demand, num_sms: int = 132
) -> float:
    """The modelled time of one kernel for x [m, k] and two weights [n, k].

    That of one GEMM over the rows of both; what is stored is half as wide as its result.
    """
    wide = replace(demand, stores=(2,) * max(1, sum(demand.stores) // 3))
    return seconds(config, m, 2 * n, k, wide, num_sms)


def separate_seconds(m: int, n: int, k: int, demand: Demand, num_sms: int = 132) -> float:
    """The modelled time of the framework's GEMMs, one or two, and of a kernel that joins them."""
    gemms = min(2 * cublas_seconds(m, n, k, num_sms), cublas_seconds(m, 2 * n, k, num_sms))
    traffic = 4 + demand.stores[0]  # other outputs are the GEMMs' own
    return gemms + traffic * m * n / _BANDWIDTH + _POINTWISE_LAUNCH


def _rate(
    m: int, n: int, k: int, rates: tuple[float, float], busy: float = 1.0, loads: float = 0.0
) -> float:
    """Cycles a second: the longer and the more the tensor cores are busy, the lower the clock.

    Loads, rows of a stage over elements of the tile, take their part of the power, too.
    """
    short, long = rates
    at_limit = long * (1 - _POWER_OF_LOADS * loads) * busy**-_IDLE
    return short + min(at_limit - short, 0.0) * length(m, n, k)


def length(m: int, n: int, k: int) -> float:
    """How long a problem is, between 0 and 1."""
    work = math.log2(max(1, 2 * m * n * k) / _SHORT) / math.log2(_LONG / _SHORT)
    return min(1.0, max(0.0, work))


def _beside(a: float, b: float) -> float:
    """The time of two that run beside one another; where they are as long, they get in the way."""
    return (a**_OVERLAP + b**_OVERLAP) ** (1 / _OVERLAP)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
