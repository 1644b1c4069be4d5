"""float32 accuracy: whether to split onto the tensor cores, and with which configuration.

The times are a model of an H200 (benchmarks/NOTES-float32.md). The result has float32's accuracy
either way, and is no less accurate than cuBLAS's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..build.build import build_cubin
from .problem import Problem

_TILE_M = 128  # rows of output a CTA computes
_TILE_K = 64
_GROUP = 16  # rows of tiles walked together: their x and the columns' w stay in L2
_MIN_K = 256  # of less, splitting and the epilogue are most of the work
_MIN_M = 64  # of fewer rows, tiles are mostly empty
_MIN_UNITS = 32  # tiles of 128 x 64, or segments of them; of fewer, most of the device is idle
# With few tiles of 128 x 128 cuBLAS cuts K, and its short sums are more accurate than the wide
# tile's; of some K than the narrow tile's, too: (tiles, the K between which they are or may be).
_FEW = ((32, 319, 16384), (48, 319, 4096), (66, 1024, 4096))
_MOST_SEGMENTS = 64
_LEAST_STEPS = 8  # of 64 K in a segment
_MOST_PARTIAL = 128 * 2**20  # bytes of the segments' sums
# Bytes of both operands' pieces: where they would be more than the first, K is split and multiplied
# in parts of about the second, if that takes little longer.
_MOST_PIECES, _PIECES_OF_PART = 128 * 2**20, 64 * 2**20
_MUCH = 96 * 2**20  # gemm_sm90_f32_args.h's kSplitMuch
_LITTLE_LONGER = 1.09  # by the model below; the device was as fast where that says 1.07

_LAUNCH = 2e-6  # seconds a kernel, one waiting for the other
_GEMM_LAUNCH = 4e-6  # of the GEMM, until its first stages are there
_SPLIT_BANDWIDTH = 3.3e12  # bytes a second, read and written
_COLUMNS_BANDWIDTH = 2.6e12  # of a matrix stored [k, rows]
_CACHED_K = 8192  # of such a matrix up to which the second read of it comes from the cache
_KM = 1.08  # a K of a tile takes longer by so much where an operand is stored [k, rows]
_SUM = 4e-6  # of the kernel that adds segments, before it is a matter of bytes
_PARTIAL_BANDWIDTH = 3.5e12
_SGEMM = 51e12  # FLOP a second of cuBLAS on the CUDA cores
_SGEMM_K = 38e-9  # seconds that one K takes however small the problem is
_SGEMM_LONGEST = 1024  # K that is not cut
_BANDWIDTH = 3.2e12
_SGEMM_LAUNCH = 3e-6


@dataclass(frozen=True)
class Tile:
    """A compiled schedule, and how long it keeps a multiprocessor."""

    n: int
    stages: int
    per_k: float  # seconds that one K of a tile takes
    each: float  # and once a tile: epilogue, and refilling the pipeline

    def seconds(
        self,
        m: int,
        n: int,
        k: int,
        with_preact: bool,
        num_sms: int,
        segments: int = 1,
        parts: int = 1,
    ) -> float:
        """The time of the GEMM with its epilogue, K cut into ``segments``, ``parts`` launches."""
        cluster = _cluster(m)
        clusters = -(-m // (cluster * _TILE_M)) * -(-n // self.n)
        waves = parts * -(-clusters * segments // parts // (num_sms // cluster))
        steps = -(-k // _TILE_K)
        depth = _TILE_K * -(-steps // segments) if segments > 1 else k
        stored = 0.3 * with_preact if segments == 1 else 0.0
        gemm = waves * (self.per_k * depth + self.each * (1 + stored)) + parts * _GEMM_LAUNCH
        if segments == 1:
            return gemm
        traffic = 8 * segments * m * n + 4 * m * n * (1 + with_preact)
        return gemm + _SUM + traffic / _PARTIAL_BANDWIDTH

    def config(self, m: int, segments: int = 1, parts: int = 1) -> str:
        """The configuration for m rows: "split 128x64 cluster2 stages4 group16 segments1".

        Args:
            m: rows of x.
            segments: into which K is cut.
            parts: in which these are split and multiplied, one after the other; it divides
                ``segments``.
        """
        schedule = f"cluster{_cluster(m)} stages{self.stages} group{_GROUP}"
        text = f"split {_TILE_M}x{self.n} {schedule} segments{segments}"
        return text if parts == 1 else f"{text} parts{parts}"


TILES = (Tile(128, 3, 14.75e-9, 3.8e-6), Tile(64, 4, 9.1e-9, 2.2e-6))
_NARROW = TILES[1]


def _cluster(m: int) -> int:
    return 2 if m > _TILE_M else 1


def _segments(m: int, n: int, k: int) -> Iterator[int]:
    """Numbers of segments of whole steps of K, none of them empty, that give the device work."""
    steps, tiles, before = -(-k // _TILE_K), -(-m // _TILE_M) * -(-n // _NARROW.n), 0
    most = min(_MOST_SEGMENTS, steps // _LEAST_STEPS, _MOST_PARTIAL // (4 * m * n))
    for segments in range(1, max(1, most) + 1):
        per = -(-steps // segments)
        if per != before and tiles * segments >= _MIN_UNITS:
            yield -(-steps // per)
        before = per


def _segments_of_parts(m: int, n: int, k: int) -> Iterator[tuple[int, int]]:
    """Numbers of segments and of parts, each part of as many segments, none of them empty."""
    parts = max(2, round(4 * k * (m + n) / _PIECES_OF_PART))
    steps, most = -(-k // _TILE_K), _MOST_PARTIAL // (4 * m * n)
    for each in range(1, min(_MOST_SEGMENTS, most) // parts + 1):
        per = -(-steps // (parts * each))
        if per >= _LEAST_STEPS and (parts * each - 1) * per < steps and parts * each > 1:
            yield parts * each, parts


def _tiles(m: int, n: int) -> tuple[Tile, ...]:
    """Those that are as accurate as cuBLAS."""
    return (_NARROW,) if _wide_tiles(m, n) < _FEW[-1][0] else TILES


def _wide_tiles(m: int, n: int) -> int:
    return -(-m // _TILE_M) * -(-n // 128)


def _best(m: int, n: int, k: int, with_preact: bool, num_sms: int) -> tuple[float, str]:
    """The shortest time and its configuration; infinite if too little of the device has work."""
    return min(
        (
            (tile.seconds(m, n, k, with_preact, num_sms, segments), tile.config(m, segments))
            for tile in _tiles(m, n)
            for segments in _segments(m, n, k)
        ),
        default=(math.inf, ""),
    )


def takes_much(m: int, n: int, k: int) -> bool:
    """Whether the pieces of all of x [m, k] and w [n, k] would take much memory."""
    return 4 * k * (m + n) > _MOST_PIECES


def has_room_in_its_output(m: int, n: int, k: int) -> bool:
    """Whether pieces of all of x [m, k] and w [n, k] take much, but no more than the output."""
    return 4 * k * (m + n) > _MUCH and k * (m + n) <= m * n


def _in_parts(
    m: int, n: int, k: int, with_preact: bool, num_sms: int, most: float
) -> tuple[float, str] | None:
    """The shortest time of parts and its configuration, if that is no more than ``most``."""
    if not takes_much(m, n, k):
        return None
    found = min(
        (
            (
                tile.seconds(m, n, k, with_preact, num_sms, segments, parts)
                + (parts - 1) * _LAUNCH,
                tile.config(m, segments, parts),
            )
            for tile in _tiles(m, n)
            for segments, parts in _segments_of_parts(m, n, k)
        ),
        default=(math.inf, ""),
    )
    return found if found[0] <= most else None


def split_seconds(
    m: int,
    n: int,
    k: int,
    with_preact: bool,
    num_sms: int,
    w_is_kn: bool = False,
    x_is_km: bool = False,
) -> float:
    """The time of splitting x and w and of the GEMM with its epilogue."""
    split = sum(_split_of(rows, k, is_km) for rows, is_km in ((m, x_is_km), (n, w_is_kn)))
    launches = 1 if x_is_km == w_is_kn else 2  # one splits both, or each has its own
    gemm = _best(m, n, k, with_preact, num_sms)[0]
    return split + launches * _LAUNCH + gemm * (_KM if x_is_km or w_is_kn else 1.0)


def _split_of(rows: int, k: int, is_km: bool) -> float:
    if not is_km:
        return 8 * rows * k / _SPLIT_BANDWIDTH
    return (8 if k <= _CACHED_K else 12) * rows * k / _COLUMNS_BANDWIDTH


def hybrid_seconds(m: int, n: int, k: int, bare: bool = False) -> float:
    """The time of cuBLAS's SGEMM and, unless the GEMM is ``bare``, of the pointwise kernel."""
    shortest = min(k, _SGEMM_LONGEST) * _SGEMM_K
    gemm = max(2 * m * n * k / _SGEMM, shortest, 4 * (m * k + k * n + m * n) / _BANDWIDTH)
    gemm += _SGEMM_LAUNCH
    return gemm if bare else gemm + 8 * m * n / _BANDWIDTH + _SGEMM_LAUNCH


def choose(
    m: int,
    n: int,
    k: int,
    with_preact: bool,
    num_sms: int = 132,
    w_is_kn: bool = False,
    x_is_km: bool = False,
    bare: bool = False,
) -> str | None:
    """The configuration for x [m, k] and w [n, k], or None where cuBLAS is as fast.

    Args:
        m, n, k: the GEMM's sizes.
        with_preact: whether z is stored, too.
        num_sms: multiprocessors of the device.
        w_is_kn, x_is_km: whether they are stored [k, n] and [k, m].
        bare: whether the epilogue is empty.
    """
    if k < _MIN_K or m < _MIN_M:
        return None
    if any(_wide_tiles(m, n) < few and above < k < below for few, above, below in _FEW):
        return None
    ours = split_seconds(m, n, k, with_preact, num_sms, w_is_kn, x_is_km)
    if ours > hybrid_seconds(m, n, k, bare):
        return None
    seconds, config = _best(m, n, k, with_preact, num_sms)
    most = seconds + (_LITTLE_LONGER - 1) * ours
    parts = _in_parts(m, n, k, with_preact, num_sms, most)
    return config if parts is None else parts[1]


def defines(
    config: str,
    with_preact: bool,
    w_is_kn: bool = False,
    x_is_km: bool = False,
    odd_n: bool = False,
) -> dict[str, object]:
    """The macros of one build of gemm_sm90_f32.cu."""
    tile = next(t for t in TILES if f"x{t.n} " in config)
    return {
        "FUSEPASS_TILE_N": tile.n,
        "FUSEPASS_UNITS": tile.n // 8,
        "FUSEPASS_RING": tile.stages,
        "FUSEPASS_CLUSTER": 2 if "cluster2" in config else 1,
        "FUSEPASS_X_IS_KM": int(x_is_km),
        "FUSEPASS_W_IS_KN": int(w_is_kn),
        "FUSEPASS_SEGMENTS": int("segments1" not in config.split()),
        "FUSEPASS_PREACT": int(with_preact),
        "FUSEPASS_ODD_N": int(odd_n),
    }


def split_shape(rows: int, k: int, is_km: bool = False) -> tuple[int, int]:
    """The shape, in bytes, of a split matrix, which gemm_sm90_f32_launch.cpp lays out.

    Its lines as they are stored, rows or, if ``is_km``, K, by the bytes of each. No matrix of
    another size or order has it, but for those without lines.
    """
    length = rows if is_km else k
    pieces, facts = 4 * -(-length // 8) * 8, 16 + 4 + (64 if is_km else 0)
    if not is_km:
        return rows, pieces + facts + k % 8
    each = -(-facts * rows // max(k, 1))
    return k, pieces + -(-each // 32) * 32 + rows % 8


def split_cubin(arch: str) -> Path:
    """The kernels that split a matrix, built.

    Raises:
        BuildError: if they cannot be.
    """
    return build_cubin("sm90_f32/split_sm90.cu", {}, arch)


def plan(problem: Problem, arch: str, num_sms: int) -> str | None:
    """The answer of ``fusepass::_plan`` for float32, built; None where cuBLAS is as fast."""
    p = problem
    orders, bare = (p.w_is_kn, p.x_is_km), p.bare
    config = choose(p.m, p.n, p.k, p.with_preact, num_sms, *orders, bare)
    if config is None or arch != "90a":
        return None
    split_cubin(arch)
    macros = defines(config, p.with_preact, *orders, p.n % 2 == 1)
    cubin = build_cubin("sm90_f32/gemm_sm90_f32.cu", macros, arch, p.include)
    return f"{config}|{cubin}|fusepass_gemm"
