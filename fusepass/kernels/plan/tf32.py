"""TF32: which configuration of gemm_sm90_tf32.cu runs a float32 problem that may be rounded.

The times are a model of an H200, fitted to measurements in benchmarks/NOTES-float32.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import DType
from ...ir.cost import instructions
from ...ir.outputs import reads_only_z
from ..build.build import build_first
from .problem import Problem

_GROUP = 16  # rows of tiles walked together
_SHORT_K = 768  # up to which half as many are better: x and w pass through L2 sooner
_MIN_K = 128  # of less, the output's bytes are all there is to it

# Instructions an element up to which ping-pong tiles of 192 columns are for: with mish's 47 they
# took 2.3 times as long as 128 (benchmarks/NOTES-float32.md).
_SHORT_WORK = 16

_CLOCK = 1.37e9  # under this load, Hz
_LAUNCH = 3e-6  # of a kernel, seconds
_CUBLAS = 340e12  # FLOP a second of cuBLAS, which splits K where there are few tiles
_CUBLAS_ALONE = 320e12  # of ten products alone 306 to 361, of which ours was ahead by 0.4 to 11%
_BANDWIDTH = 3.2e12  # bytes a second, read and written


@dataclass(frozen=True)
class Tile:
    """A compiled schedule, and how long it keeps a multiprocessor."""

    text: str
    m: int
    n: int
    stages: int
    pingpong: bool
    overhead: int  # as if it were this much wider: what waits for loads
    each: float  # cycles that a tile takes besides its products
    last: float  # and the last one more: a ping-pong epilogue that no other tile hides

    def seconds(self, m: int, n: int, k: int, num_sms: int) -> float:
        """The time of a whole GEMM with clusters of two."""
        clusters = -(-m // (2 * self.m)) * -(-n // self.n)
        waves = -(-clusters // (num_sms // 2))
        per_k = self.m * (self.n + self.overhead) / 1024  # a tensor core: 1024 FMA a cycle
        return (waves * (per_k * k + self.each) + self.last) / _CLOCK + _LAUNCH


TILES = (
    Tile("128x256 cooperative", 128, 256, 4, False, 5, 8000.0, 0.0),
    Tile("128x192 pingpong", 128, 192, 5, True, 10, 0.0, 3500.0),
    Tile("128x128 pingpong", 128, 128, 6, True, 5, 1000.0, 2500.0),
    Tile("128x128 cooperative", 128, 128, 6, False, 5, 3500.0, 0.0),
    Tile("128x64 cooperative", 128, 64, 8, False, 5, 4000.0, 0.0),
)


def hybrid_seconds(m: int, n: int, k: int) -> float:
    """The time of cuBLAS's GEMM and of the pointwise kernel."""
    return 2 * m * n * k / _CUBLAS + 8 * m * n / _BANDWIDTH + 2 * _LAUNCH


def cublas_seconds(m: int, n: int, k: int) -> float:
    """The time of cuBLAS's GEMM alone."""
    return 2 * m * n * k / _CUBLAS_ALONE + _LAUNCH


def candidates(m: int, n: int, k: int, num_sms: int, work: int = 0) -> list[str]:
    """Configurations for a program of ``work`` instructions, the fastest by the model first.

    A configuration reads "tf32 128x256 cooperative cluster2 stages4 group16".
    """
    group = _GROUP if k > _SHORT_K else _GROUP // 2
    ranked = _by_time(m, n, k, num_sms, work)
    return [f"tf32 {t.text} cluster2 stages{t.stages} group{group}" for t in ranked]


def _by_time(m: int, n: int, k: int, num_sms: int, work: int) -> list[Tile]:
    some = [t for t in TILES if work <= _SHORT_WORK or t.n <= 128 or not t.pingpong]
    return sorted(some, key=lambda tile: tile.seconds(m, n, k, num_sms))


def choose(
    m: int,
    n: int,
    k: int,
    w_is_kn: bool,
    num_sms: int,
    work: int = 0,
    bare: bool = False,
) -> str | None:
    """The configuration for x [m, k] and w [n, k], or None for cuBLAS.

    ``work`` is how many instructions an element the program takes; if it is empty, ``bare``, ours
    must be faster than cuBLAS's GEMM alone.
    """
    if w_is_kn or n % 2 or k % 4:
        return None  # what gemm_sm90_tf32_launch.cpp refuses
    if k < _MIN_K or m <= 128:
        return None
    best = _by_time(m, n, k, num_sms, work)[0]
    torchs = cublas_seconds(m, n, k) if bare else hybrid_seconds(m, n, k)
    if best.seconds(m, n, k, num_sms) > torchs:
        return None
    return candidates(m, n, k, num_sms, work)[0]


def defines(config: str, with_preact: bool) -> dict[str, object]:
    """The macros of one build of gemm_sm90_tf32.cu."""
    tile = next(t for t in TILES if t.text in config)
    return {
        "FUSEPASS_TILE_M": tile.m,
        "FUSEPASS_TILE_N": tile.n,
        "FUSEPASS_UNITS": tile.n // 8,
        "FUSEPASS_RING": tile.stages,
        "FUSEPASS_CLUSTER": 2,
        "FUSEPASS_PINGPONG": int(tile.pingpong),
        "FUSEPASS_PREACT": int(with_preact),
    }


def plan(problem: Problem, arch: str, num_sms: int) -> str | None:
    """The answer of ``fusepass::_plan`` for TF32, built; None for cuBLAS."""
    if not reads_only_z(problem.program):
        return None  # nothing else has been run; of column sums the kernel has none
    shape = (problem.m, problem.n, problem.k)
    work = instructions(problem.program, DType.F32)
    if arch != "90a" or choose(*shape, problem.w_is_kn, num_sms, work, problem.bare) is None:
        return None
    ranked = candidates(*shape, num_sms, work)
    choices = [defines(config, problem.with_preact) for config in ranked]
    index, cubin = build_first("sm90/gemm_sm90_tf32.cu", choices, arch, problem.include)
    return f"{ranked[index]}|{cubin}|fusepass_gemm"
