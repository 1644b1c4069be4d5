"""16-bit GEMM and epilogue in one launch: which configuration of the kernel, or the hybrid.

A small model of a persistent kernel on Hopper, in cycles of one multiprocessor, fitted to the
measurements in benchmarks/NOTES.md. Shapes in, a configuration out; nothing here touches a device.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from .build import build_first
from .problem import BFLOAT16, Problem

# Cycles of a multiprocessor unless said otherwise, fitted to benchmarks/NOTES.md's measurements.
_MACS = 2048  # of 16-bit operands a multiprocessor makes in a cycle
_RATES = 1.531e9, 1.374e9  # cycles a second: of a short problem, of a long one at the power limit
_SHORT, _LONG = 2.0**33, 2.0**37  # FLOP of a problem at which the clock starts and ends to fall
_POWER_OF_LOADS = 4.89  # how much of the long clock a tile's loads take, over its loads an element
_LAUNCH = 1.34e-6  # seconds before the first cycle
_CLUSTER = 874.0  # of a launch in pairs of CTAs
_OVERHEAD_COLUMNS = 4.33  # a narrow tile is as slow as if it were this much wider
_STEP = 152.0  # of 64 K, over the stages of the ring: waits for loads, barriers
_SHARED = 147.6  # bytes a cycle into and out of shared memory
_ROW = 1.78, 3.27  # to load a row of 64 K that starts at a sector of memory, and one that does not
_SECTOR = 16  # elements
_ELEMENT = 26.6  # of the epilogue an element and thread: stages, packing, store
_ELEMENT_BESIDE = 42.2  # and beside the other consumer's products, which take the register ports
_TOGETHER = 0.242  # what each more consumer that shares the tile adds to an element
# Times those cycles, with z: where a tile has 128 rows and its boxes are whole lines, and not.
_PREACT = 1.4, 2.2
_TILE_END = 324.0  # of an epilogue besides: draining wgmma, bias, barriers, last store
_BANDWIDTH = 4.3e12  # bytes a second of a stream through device memory
# The framework's GEMM picks among these, and may split K; nothing hides the end of its tiles.
_CUBLAS_TILES = ((256, 128), (256, 144), (128, 192), (128, 128), (128, 64), (64, 64))
_CUBLAS_RATES = 1.65e9, 1.37e9
_CUBLAS_LAUNCH = 3.2e-6
_CUBLAS_TILE_END = 1700.0
_CUBLAS_SPLIT_END = 2500.0
_POINTWISE_LAUNCH = 1.5e-6  # seconds of one more kernel
_CAUTION = 1.2  # the model is off by 8%: two kernels are for where they are faster beyond doubt
_MIN_M = 65  # fewer rows are bound by memory: cuBLAS splits K, this kernel does not


@dataclass(frozen=True)
class Config:
    """One build of gemm_sm90.cu; ``str()`` is the text form of gemm_sm90_launch.h."""

    tile_m: int  # of the output; of its transpose if `swapped`
    tile_n: int
    stages: int
    cluster: int  # CTAs below one another, or `beside`, that share an operand
    pingpong: bool
    group: int
    swapped: bool = False
    beside: bool = False
    split: int = 1

    def __str__(self) -> str:
        schedule = "pingpong" if self.pingpong else "cooperative"
        options = [
            *["swapped"] * self.swapped,
            *["beside"] * self.beside,
            *[f"split{self.split}"] * (self.split > 1),
        ]
        return " ".join(
            [
                f"{self.tile_m}x{self.tile_n} {schedule} cluster{self.cluster}",
                f"stages{self.stages} group{self.group}",
                *options,
            ]
        )

    @property
    def consumers(self) -> int:
        """Warpgroups that multiply, as gemm_sm90_geometry.h says."""
        return 3 if not self.pingpong and self.tile_m == 192 else 2

    @staticmethod
    def parse(text: str) -> Config:
        """Reads the text form; ``Config.parse(str(c)) == c``."""
        tile, schedule, *words = text.split()
        numbers = {w.rstrip("0123456789"): int(re.sub(r"\D", "", w) or 1) for w in words}
        m, n = map(int, tile.split("x"))
        return Config(
            m,
            n,
            numbers["stages"],
            numbers["cluster"],
            schedule == "pingpong",
            numbers["group"],
            "swapped" in numbers,
            "beside" in numbers,
            numbers.get("split", 1),
        )


# Shared memory holds the ring of stages and the staged output; ping-pong tiles are small enough
# that two epilogues' registers fit.
CONFIGS = (
    Config(128, 192, 4, 1, True, 14),
    Config(128, 192, 4, 2, True, 14),
    Config(128, 168, 5, 1, True, 12),
    Config(128, 160, 5, 1, True, 12),
    Config(128, 160, 5, 2, True, 12),
    Config(128, 144, 5, 1, True, 12),
    Config(128, 128, 6, 1, True, 12),
    Config(128, 128, 6, 2, True, 12),
    Config(128, 112, 6, 1, True, 12),
    Config(64, 256, 4, 1, True, 8),
    Config(64, 128, 8, 1, True, 8),
    Config(64, 128, 8, 2, True, 8),
    Config(64, 96, 8, 1, True, 8),
    Config(64, 80, 8, 1, True, 8),
    Config(64, 64, 8, 1, True, 8),
    Config(64, 48, 8, 1, True, 8),
    Config(64, 40, 8, 1, True, 8),
    Config(256, 128, 4, 1, False, 16),
    Config(256, 128, 4, 2, False, 16),
    Config(192, 128, 4, 2, False, 12),
    Config(128, 256, 4, 1, False, 16),
    Config(128, 256, 4, 2, False, 16),
    Config(128, 224, 4, 1, False, 12),
    Config(128, 192, 4, 1, False, 12),
    Config(128, 128, 6, 1, False, 10),
    Config(128, 128, 6, 2, False, 10),
    Config(128, 104, 6, 1, False, 12),
    Config(128, 64, 8, 1, False, 8),
)


def seconds(
    config: Config, m: int, n: int, k: int, with_preact: bool = False, num_sms: int = 132
) -> float:
    """The modelled time of one call with ``config``."""
    clusters = _ceil(m, config.tile_m * config.cluster) * _ceil(n, config.tile_n)
    tiles = _ceil(clusters, max(1, num_sms // config.cluster))  # one multiprocessor's
    area = config.tile_m * config.tile_n
    rows = config.tile_m + config.tile_n / config.cluster  # that a stage loads
    products = config.tile_m * (config.tile_n + _OVERHEAD_COLUMNS) * 64 / _MACS
    # wgmma reads 64 rows of x and all of w from shared memory, which TMA has written.
    read = config.tile_m / 64 * (64 + config.tile_n) + config.tile_m + config.tile_n
    step = (
        max(products, read * 128 / _SHARED, rows * _ROW[k % _SECTOR != 0]) + _STEP / config.stages
    )
    mainloop = _ceil(k, 64) * step
    elements = area / 128
    if with_preact:
        elements *= _PREACT[config.tile_n % 64 != 0 or config.tile_m == 64]
    if config.pingpong:
        # A consumer's next tile begins when the other's products end, or its own epilogue if later.
        both = mainloop + max(mainloop, _TILE_END + elements * _ELEMENT_BESIDE)
        before = (tiles - 1) // 2 * both + (tiles - 1) % 2 * mainloop
    else:
        elements *= (1 + _TOGETHER * (config.consumers - 1)) / config.consumers
        before = (tiles - 1) * (mainloop + _TILE_END + elements * _ELEMENT)
    last = mainloop + _TILE_END + elements * _ELEMENT
    cycles = (config.cluster - 1) * _CLUSTER + before + last
    traffic = 2 * (m * k + n * k + m * n * (2 if with_preact else 1))
    return _LAUNCH + max(cycles / _rate(m, n, k, _RATES, rows / area), traffic / _BANDWIDTH)


def hybrid_seconds(m: int, n: int, k: int, num_sms: int = 132) -> float:
    """The modelled time of the framework's GEMM and the pointwise kernel, with some caution."""
    cycles = min(
        _ceil(_ceil(m, tile_m) * _ceil(n, tile_n) * split, num_sms)
        * (_ceil(_ceil(k, 64), split) * tile_m * tile_n * 64 / _MACS + _CUBLAS_TILE_END)
        + (_CUBLAS_SPLIT_END if split > 1 else 0)
        for tile_m, tile_n in _CUBLAS_TILES
        for split in (1, 2, 4)
    )
    traffic = 2 * (m * k + n * k + m * n) / _BANDWIDTH
    gemm = _CUBLAS_LAUNCH + max(cycles / _rate(m, n, k, _CUBLAS_RATES), traffic)
    return _CAUTION * (gemm + 4 * m * n / _BANDWIDTH + _POINTWISE_LAUNCH)


def _rate(m: int, n: int, k: int, rates: tuple[float, float], loads: float = 0.0) -> float:
    """Cycles a second: the longer the tensor cores are busy, the lower the clock.

    Loads, rows of a stage over elements of the tile, take their part of the power, too.
    """
    work = math.log2(max(1, 2 * m * n * k) / _SHORT) / math.log2(_LONG / _SHORT)
    work = min(1.0, max(0.0, work))
    short, long = rates
    return short * (1 - work) + long * (1 - _POWER_OF_LOADS * loads) * work


def candidates(
    m: int,
    n: int,
    k: int,
    w_is_kn: bool,
    with_preact: bool,
    num_sms: int = 132,
    x_is_km: bool = False,
) -> list[Config]:
    """Configurations that can run the problem, the fastest by the model first."""
    fitting = (c for c in CONFIGS if _fits(c, (m, n, k), w_is_kn, x_is_km, num_sms))
    return sorted(fitting, key=lambda c: seconds(c, m, n, k, with_preact, num_sms))


def _fits(
    config: Config, shape: tuple[int, int, int], w_is_kn: bool, x_is_km: bool, num_sms: int
) -> bool:
    m, n, k = shape
    rows, columns, b_is_kn = (n, m, x_is_km) if config.swapped else (m, n, w_is_kn)
    if b_is_kn and config.tile_n % 64:
        return False  # boxes of 64 columns of wgmma's B operand
    if (config.split > 1 and k < 64 * config.split) or num_sms < config.cluster * config.split:
        return False
    one = columns <= config.tile_n if config.beside else rows <= config.tile_m
    return config.cluster == 1 or not one


def possible(m: int, n: int, k: int) -> bool:
    """Whether the kernel takes the sizes, and enough rows to be worth it."""
    return m >= _MIN_M and n % 8 == 0 and k % 8 == 0


@lru_cache(maxsize=4096)
def choose(
    m: int,
    n: int,
    k: int,
    w_is_kn: bool = False,
    with_preact: bool = False,
    num_sms: int = 132,
    x_is_km: bool = False,
) -> Config | None:
    """The configuration for x [m, k] and w [n, k], or None where the hybrid is as fast."""
    if not possible(m, n, k):
        return None
    best = candidates(m, n, k, w_is_kn, with_preact, num_sms, x_is_km)[0]
    if seconds(best, m, n, k, with_preact, num_sms) > hybrid_seconds(m, n, k, num_sms):
        return None
    return best


def defines(
    config: Config,
    structure: str,
    bf16: bool,
    w_is_kn: bool,
    with_preact: bool,
    x_is_km: bool = False,
) -> dict[str, object]:
    """The macros of one build of gemm_sm90.cu."""
    a_is_km, b_is_kn = (w_is_kn, x_is_km) if config.swapped else (x_is_km, w_is_kn)
    return {
        "FUSEPASS_TILE_M": config.tile_m,
        "FUSEPASS_TILE_N": config.tile_n,
        "FUSEPASS_UNITS": config.tile_n // 8,
        "FUSEPASS_RING": config.stages,
        "FUSEPASS_CLUSTER": config.cluster,
        "FUSEPASS_PINGPONG": int(config.pingpong),
        "FUSEPASS_SWAPPED": int(config.swapped),
        "FUSEPASS_SHARES_X": int(config.beside),
        "FUSEPASS_SPLIT": config.split,
        "FUSEPASS_BF16": int(bf16),
        "FUSEPASS_X_IS_KM": int(a_is_km),
        "FUSEPASS_W_IS_KN": int(b_is_kn),
        "FUSEPASS_PREACT": int(with_preact),
        "FUSEPASS_STAGES": structure.replace(" ", "|") or "nothing",
    }


def plan(problem: Problem, arch: str, num_sms: int) -> str | None:
    """The answer of ``fusepass::_plan`` for a 16-bit dtype, built; None for the hybrid.

    What ``max_autotune`` found on this machine goes before the model.

    Raises:
        BuildError: if the kernel cannot be built.
    """
    from . import autotune

    p = problem
    if arch != "90a" or not possible(p.m, p.n, p.k):
        return None
    question = (p.m, p.n, p.k, p.w_is_kn, p.with_preact, num_sms, p.x_is_km)
    tuned, config = autotune.recall(p)
    if not tuned:
        config = choose(*question)
    if config is None:
        return None
    ranked = [config, *(c for c in candidates(*question) if c != config)]
    build = (p.structure, p.dtype == BFLOAT16, p.w_is_kn, p.with_preact, p.x_is_km)
    choices = [defines(c, *build) for c in ranked]
    index, cubin = build_first("gemm_sm90.cu", choices, arch)
    return f"{ranked[index]}|{cubin}|fusepass_gemm"


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
