"""float32 accuracy: whether to split onto the tensor cores, and with which configuration.

The times are a model of an H200 (benchmarks/NOTES-float32.md). The result has float32's accuracy
either way, and is no less accurate than cuBLAS's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .build import build_cubin
from .problem import Problem

_TILE_M = 128  # rows of output a CTA computes
_GROUP = 16  # rows of tiles walked together: their x and the columns' w stay in L2
_MIN_K = 256  # of less, splitting and the epilogue are most of the work
_MIN_M = 64  # of fewer rows, tiles are mostly empty
_MIN_TILES = 32  # of 128 x 64; of fewer, most of the device is idle
# With few tiles of 128 x 128 cuBLAS splits a long K, and its short sums are more accurate than this
# kernel's: (tiles, the longest K up to which they are not).
_FEW = ((32, 768), (66, 1024))

_LAUNCHES = 4e-6  # seconds: of the split and of the GEMM behind it
_SPLIT_BANDWIDTH = 4e12  # bytes a second, read and written
_SGEMM = 51e12  # FLOP a second of cuBLAS on the CUDA cores
_SGEMM_K = 21e-9  # seconds that one K takes it however small the problem is
_BANDWIDTH = 3.2e12
_LAUNCH = 3e-6


@dataclass(frozen=True)
class Tile:
    """A compiled schedule, and how long it keeps a multiprocessor."""

    n: int
    stages: int
    per_k: float  # seconds that one K of a tile takes
    each: float  # and once a tile: epilogue, and refilling the pipeline

    def seconds(self, m: int, n: int, k: int, with_preact: bool, num_sms: int) -> float:
        """The time of the GEMM with its epilogue."""
        cluster = _cluster(m)
        clusters = -(-m // (cluster * _TILE_M)) * -(-n // self.n)
        waves = -(-clusters // (num_sms // cluster))
        return waves * (self.per_k * k + self.each * (1 + 0.3 * with_preact))

    def config(self, m: int) -> str:
        """The configuration for m rows, such as "split 128x64 cluster2 stages4 group16"."""
        schedule = f"cluster{_cluster(m)} stages{self.stages} group{_GROUP}"
        return f"split {_TILE_M}x{self.n} {schedule}"


TILES = (Tile(128, 3, 14.8e-9, 6e-6), Tile(64, 4, 8.45e-9, 3.9e-6))


def _cluster(m: int) -> int:
    return 2 if m > _TILE_M else 1


def _best(m: int, n: int, k: int, with_preact: bool, num_sms: int) -> Tile:
    return min(TILES, key=lambda tile: tile.seconds(m, n, k, with_preact, num_sms))


def split_seconds(m: int, n: int, k: int, with_preact: bool, num_sms: int) -> float:
    """The time of splitting x and w and of the GEMM with its epilogue."""
    gemm = _best(m, n, k, with_preact, num_sms).seconds(m, n, k, with_preact, num_sms)
    return gemm + 8 * k * (m + n) / _SPLIT_BANDWIDTH + _LAUNCHES


def hybrid_seconds(m: int, n: int, k: int) -> float:
    """The time of cuBLAS's SGEMM and of the pointwise kernel."""
    gemm = max(2 * m * n * k / _SGEMM, k * _SGEMM_K, 4 * (m * k + k * n + m * n) / _BANDWIDTH)
    return gemm + 8 * m * n / _BANDWIDTH + 2 * _LAUNCH


def choose(m: int, n: int, k: int, with_preact: bool, num_sms: int = 132) -> str | None:
    """The configuration for x [m, k] and w [n, k], or None where cuBLAS is as fast."""
    if n % 2 or k % 4:
        return None  # what gemm_sm90_f32_launch.cpp refuses
    if k < _MIN_K or m < _MIN_M or -(-m // _TILE_M) * -(-n // 64) < _MIN_TILES:
        return None
    tiles = -(-m // _TILE_M) * -(-n // 128)
    if any(tiles < few and k > longest for few, longest in _FEW):
        return None
    if split_seconds(m, n, k, with_preact, num_sms) > hybrid_seconds(m, n, k):
        return None
    return _best(m, n, k, with_preact, num_sms).config(m)


def defines(structure: str, config: str, with_preact: bool) -> dict[str, object]:
    """The macros of one build of gemm_sm90_f32.cu."""
    tile = next(t for t in TILES if f"x{t.n} " in config)
    return {
        "FUSEPASS_TILE_N": tile.n,
        "FUSEPASS_UNITS": tile.n // 8,
        "FUSEPASS_RING": tile.stages,
        "FUSEPASS_CLUSTER": 2 if "cluster2" in config else 1,
        "FUSEPASS_PREACT": int(with_preact),
        "FUSEPASS_STAGES": structure.replace(" ", "|"),
    }


def split_shape(rows: int, k: int) -> tuple[int, int]:
    """The shape, in bytes, of a split [rows, k] matrix, which gemm_sm90_f32_launch.cpp lays out.

    No other size of matrix has it, but for matrices without rows.
    """
    padded, pitch = -(-rows // _TILE_M) * _TILE_M, -(-k // 8) * 8
    pieces, undo = 4 * padded * pitch, 4 * padded
    size = -(-pieces // 256) * 256 + -(-undo // 256) * 256 + 16 * padded
    return rows, -(-size // (8 * max(rows, 1))) * 8 + k % 8


def split_cubin(arch: str) -> Path:
    """The kernels that split a matrix, built.

    Raises:
        BuildError: if they cannot be.
    """
    return build_cubin("split_sm90.cu", {}, arch)


def plan(problem: Problem, arch: str, num_sms: int) -> str | None:
    """The answer of ``fusepass::_plan`` for float32, built; None where cuBLAS is as fast."""
    p = problem
    config = choose(p.m, p.n, p.k, p.with_preact, num_sms)
    if config is None or arch != "90a":
        return None
    split_cubin(arch)
    cubin = build_cubin("gemm_sm90_f32.cu", defines(p.structure, config, p.with_preact), arch)
    return f"{config}|{cubin}|fusepass_gemm"
