"""Few rows of x: bound by reading the weight once; which kernel runs them, if one of ours.

few_rows.cu's in 16 bits, few_rows_strips.cu's of up to 16 rows where that has too few batches of
columns, few_rows_f32.cu's in float32; of more rows the GEMM of tiles is better (narrow.py), or
cuBLAS. What was measured stands in benchmarks/NOTES-few-rows.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ...ir import Epilogue
from ..build.build import build_first
from .narrow import takes
from .problem import BFLOAT16, FLOAT16, FLOAT32, Problem

_NARROW = (BFLOAT16, FLOAT16)


@dataclass(frozen=True)
class Config:
    """One build of a few-row kernel; few_rows_walk.cuh says what the numbers are."""

    rows: int
    batch: int
    warps: int
    depth: int
    blocks: int
    float32: bool = False
    w_is_kn: bool = False
    chain: int = 0
    split: int = 0

    def __str__(self) -> str:
        """The text form of few_rows_launch.h."""
        shape = f"rows{self.rows} batch{self.batch}"
        more = f" chain{self.chain}" * (self.chain > 0) + f" split{self.split}" * (self.split > 0)
        return f"few {shape} warps{self.warps} depth{self.depth} blocks{self.blocks}{more}"

    @property
    def unit(self) -> int:
        """Elements of 16 bytes, in which K, and N of a weight [K, N], are counted."""
        return 4 if self.float32 else 8

    @property
    def source(self) -> str:
        """The file it is a build of."""
        if self.float32:
            return "few_rows/few_rows_f32.cu"
        return "few_rows/few_rows_strips.cu" if self.split else "few_rows/few_rows.cu"

    def defines(
        self, bf16: bool, with_preact: bool = False, several: bool = False
    ) -> dict[str, object]:
        """The macros of the build; ``several``: of strips of several weights."""
        dtype = {"FUSEPASS_CHAIN": self.chain} if self.float32 else {"FUSEPASS_BF16": int(bf16)}
        split: dict[str, object] = {}
        if self.split:
            split = {"FUSEPASS_SPLIT": self.split, "FUSEPASS_SEVERAL": int(several)}
        return {
            "FUSEPASS_ROWS": self.rows,
            "FUSEPASS_BATCH": self.batch,
            "FUSEPASS_WARPS": self.warps,
            "FUSEPASS_DEPTH": self.depth,
            "FUSEPASS_BLOCKS": self.blocks,
            "FUSEPASS_W_IS_KN": int(self.w_is_kn),
            "FUSEPASS_PREACT": int(with_preact),
            **dtype,
            **split,
        }


_LONG = Config(8, 16, 16, 4, 1)  # K that fills its steps of 2048
_SHORT = Config(8, 16, 16, 2, 1)  # of 1024, and in fewer registers
_FLOAT32 = (
    Config(1, 32, 16, 2, 1, float32=True),
    Config(2, 16, 16, 2, 1, float32=True),
    Config(4, 16, 16, 1, 2, float32=True),
    Config(8, 16, 8, 1, 2, float32=True),
    Config(16, 16, 8, 1, 2, float32=True),
)
# A sum's error grows with the root of its length, and cuBLAS's sums are short however long K is:
# where a lane has more products than this, it begins anew after some. For 16 rows there are no
# registers for that, but at most 228 products. For one row that takes 1.34 of cuBLAS's time.
_MOST_PRODUCTS, _CHAIN = 128, 64
_FLOAT32_LONG = tuple(replace(c, chain=_CHAIN) for c in _FLOAT32[1:-1])
_FLOAT32_COLUMNS = Config(1, 32, 8, 2, 2, float32=True, w_is_kn=True)
# In strips. With two weights a warp has no registers for a second block.
STRIPS = (
    *(
        Config(rows, 64, 8, 1, 2, w_is_kn=w_is_kn, split=split)
        for rows in (8, 16)
        for w_is_kn, split in ((True, 4), (True, 8), (False, 8))
    ),
    Config(16, 64, 8, 1, 2, split=1),
    Config(16, 64, 8, 1, 1, split=1),
)
# Of several weights of one x, in whose strips K is shared as in those of one.
SEVERAL = tuple(
    Config(rows, 64, 8, 1, 2, w_is_kn=w_is_kn, split=split)
    for rows in (8, 16)
    for w_is_kn, split in ((True, 4), (True, 8), (False, 2), (False, 4), (False, 8))
)
CONFIGS = (_LONG, _SHORT, *STRIPS, *_FLOAT32, *_FLOAT32_LONG, _FLOAT32_COLUMNS)

# x is read again for each batch of columns: it has to lie in the L1 cache, beside the weight's
# stream. 8x4096 of 16 bits does, 8x8192 takes 1.04 of cuBLAS's time; float32's cuBLAS is slower.
_MOST_BYTES_OF_X = 64 * 1024
_MOST_BYTES_OF_X_F32 = 256 * 1024
_FEWEST = 4  # rows up to which nothing else is as fast; up to 8 where tiles do not take the sizes
_MOST_K_COLUMNS = 1024  # of a float32 weight [K, N]: too few batches of columns for a longer K
_LEAST_K, _LEAST_COLUMNS = 1024, 512  # for a product alone; of less, launching is nearly all of it

# Strips: the sizes at which they were ahead of cuBLAS behind another's kernel in whole decoding
# steps, and few others; neither 16x1024->4096 and 1024->3072 of a weight [K, N] nor 16x2048->2048
# and 8192->2048 of the other order were.
_MULTIPROCESSORS, _SHARED = 132, 227 * 1024
_STRIPS_K = 1024, 4096
_STRIPS_COLUMNS = 512, 1024  # of a weight [N, K], whose K is longer; of a weight [K, N]
_STRIPS_COLUMNS_ALONE = 4096  # of a weight [K, N] of 1,024 K, up to 8 rows, with an epilogue
_ROUND = 0.8  # the share of the multiprocessors that strips of two weights fill
# In a step a kernel takes this beside what its bytes do, on an H200.
_KERNEL_SECONDS, _BANDWIDTH = 2.8e-6, 4.3e12
_LEAST_ELEMENTS_F32 = 2**22  # of the weight, for a product alone in float32


@lru_cache(maxsize=4096)
def choose(
    dtype: int,
    m: int,
    n: int,
    k: int,
    w_is_kn: bool = False,
    x_is_km: bool = False,
    gated: bool = False,
    bare: bool = False,
) -> Config | None:
    """The kernel for x [m, k] and w [n, k], or None where another way is as fast.

    Args:
        dtype: a code of ``problem.py``.
        m, n, k: the sizes.
        w_is_kn, x_is_km: whether w is stored [k, n], and x [k, m].
        gated: whether there are two weights of these sizes.
        bare: whether the epilogue is empty: then it must be faster than the framework's GEMM alone.
    """
    if x_is_km or m < 1 or not _is_whole(dtype, n, k, w_is_kn):
        return None
    if dtype in _NARROW:
        strips = _strips(m, n, k, w_is_kn, gated, bare)
        return strips or (None if w_is_kn else _narrow(m, n, k, gated, bare))
    if w_is_kn and k > _MOST_K_COLUMNS:
        return None
    wanted = dtype == FLOAT32 and not gated  # two weights have no room in its registers
    return _float32(m, n, k, w_is_kn, bare) if wanted else None


def _is_whole(dtype: int, n: int, k: int, w_is_kn: bool) -> bool:
    """Whether what is read in 16 bytes is of 16 bytes."""
    unit = 8 if dtype in _NARROW else 4
    return n > 0 and k > 0 and k % unit == 0 and (n % unit == 0 or not w_is_kn)


def _strips(m: int, n: int, k: int, w_is_kn: bool, gated: bool, bare: bool) -> Config | None:
    if m > 16 or not _in_strips(m, n, k, w_is_kn, gated, bare):
        return None
    config = _sharing_k(m, -(-n // 64), k, w_is_kn, 1 if gated else 2)
    known = config in STRIPS and shared_bytes(config, k, 1 + gated) < _SHARED // config.blocks
    return config if known else None


def _sharing_k(m: int, strips: int, k: int, w_is_kn: bool, blocks: int) -> Config:
    """Strips whose K as many blocks share as fit on the device beside one another."""
    split, steps = 8, -(-k // (8 * 32))
    while split > 1 and (split > steps or strips * split > _MULTIPROCESSORS * blocks):
        split //= 2
    return Config(8 if m <= 8 else 16, 64, 8, 1, blocks, w_is_kn=w_is_kn, split=split)


def several(m: int, widths: Sequence[int], k: int, w_is_kn: bool = False) -> Config | None:
    """The kernel for x [m, k] of 16 bits and several weights [n, k] of ``widths``, or None.

    ``w_is_kn``: they are stored [k, n].
    """
    if not 0 < m <= 16 or not all(_is_whole(BFLOAT16, n, k, w_is_kn) for n in widths):
        return None
    config = _sharing_k(m, sum(-(-n // 64) for n in widths), k, w_is_kn, 2)
    known = config in SEVERAL and shared_bytes(config, k, 1) < _SHARED // config.blocks
    return config if known and _STRIPS_K[0] <= k <= _STRIPS_K[1] else None


def seconds(n: int, k: int) -> float:
    """What a product of a few rows and a weight [n, k] of 16 bits takes about, as one kernel."""
    return _KERNEL_SECONDS + 2 * n * k / _BANDWIDTH


def _in_strips(m: int, n: int, k: int, w_is_kn: bool, gated: bool, bare: bool) -> bool:
    least, most = _STRIPS_K
    if not least <= k <= most or n < _LEAST_COLUMNS:
        return False
    if gated:
        strips = -(-n // 64)
        rounds = -(-strips // _MULTIPROCESSORS)
        return m > 8 and not w_is_kn and strips >= _ROUND * rounds * _MULTIPROCESSORS
    if w_is_kn:
        few = m <= 8 and not bare and k == least and n <= _STRIPS_COLUMNS_ALONE
        return few or n <= _STRIPS_COLUMNS[1]
    # An odd number of columns, a vocabulary's, is what cuBLAS has its slowest kernels for.
    return n <= _STRIPS_COLUMNS[0] if n % 8 == 0 or m <= 8 else n >= 4096


def fits(config: Config, k: int, weights: int = 1) -> bool:
    """Whether a block has room for its part of x, of which strips have a copy."""
    return not config.split or shared_bytes(config, k, weights) < _SHARED


def shared_bytes(config: Config, k: int, weights: int) -> int:
    """Shared memory of a block of strips, as few_rows_launch.cpp says."""
    c, step = config, 32 * config.warps
    sums, row = 4 * weights * c.batch * c.rows, 2 * step * -(-k // (c.split * step)) + 64
    turn = sums + 16 * weights * c.rows
    return 32 + c.warps * turn + (c.split - 1) * sums + c.rows * row


def _narrow(m: int, n: int, k: int, gated: bool, bare: bool) -> Config | None:
    tiles = takes(n, k) and not gated and (n > 4096 or not bare)  # 8x4096->4096 alone: 0.81
    if m > (_FEWEST if tiles else 8) or 2 * m * k > _MOST_BYTES_OF_X:
        return None
    if bare and (k < _LEAST_K or n < _LEAST_COLUMNS):
        return None
    return _LONG if k >= 4096 and not gated else _SHORT


def _float32(m: int, n: int, k: int, w_is_kn: bool, bare: bool) -> Config | None:
    if 4 * m * k > _MOST_BYTES_OF_X_F32 or (bare and n * k < _LEAST_ELEMENTS_F32):
        return None
    if w_is_kn:  # slower than cuBLAS's product alone
        return _FLOAT32_COLUMNS if m == 1 and not bare else None
    config = next((c for c in _FLOAT32 if m <= c.rows), None)
    if config is None or config is _FLOAT32[-1]:
        return config
    products = k / (4 * config.warps)  # of a lane: four share a warp's part of K
    if products <= _MOST_PRODUCTS:
        return config
    return replace(config, chain=_CHAIN) if m > 1 else None


def computes(program: Epilogue) -> bool:
    """Whether these kernels compute the program: they store, make no sum over rows, and have no
    two columns of a row in one thread."""
    return not program.heads.columns and all(output.kind == "store" for output in program.outputs)


def plan(problem: Problem, arch: str) -> str | None:
    """The answer of ``fusepass::_plan`` for few rows, built; None where others go on.

    Raises:
        BuildError: if the kernel cannot be built; SpillError if it has not enough registers.
    """
    p = problem
    sizes = (p.dtype, p.m, p.n, p.k, p.w_is_kn, p.x_is_km)
    config = choose(*sizes, p.gated, p.bare and not p.with_preact)
    if arch != "90a" or config is None or not computes(p.program):
        return None
    ranked = (config, _SHORT) if config == _LONG else (config,)
    if config.split:  # a longer epilogue may have no registers beside two blocks
        ranked = (config, replace(config, blocks=1))
    choices = [c.defines(p.dtype == BFLOAT16, p.with_preact) for c in ranked]
    index, cubin = build_first(config.source, choices, arch, p.include)
    return f"{ranked[index]}|{cubin}|fusepass_few_rows"
