"""The 16-bit GEMM of tiles for few rows: the weight is wgmma's A operand, and tiles are narrow.

What was measured stands in benchmarks/NOTES-few-rows.md.
"""

from __future__ import annotations

from .configs import Config

MOST_ROWS = 64
_LEAST_COLUMNS, _LEAST_K = 4096, 2048  # of fewer nothing was measured
# The share of the multiprocessors' rounds that has tiles, below which cuBLAS, which splits K, is as
# fast (11008 columns: 0.65), unless there is but half a round, in which it does badly, too.
_FULL = 0.8
_FEW_TILES = 66
# Elements of a weight for a product alone. Of fewer it is ahead by a microsecond behind itself,
# which its start costs behind another's kernel.
_LEAST_ALONE = 2**27

NARROW_TILES = tuple(
    Config.parse(text)
    for text in (
        "128x16 cooperative cluster1 stages10 group12 swapped",
        "64x16 pingpong cluster1 stages16 group12 swapped",
        "64x32 pingpong cluster1 stages16 group12 swapped",
        "128x64 cooperative cluster1 stages8 group12 swapped",
        "64x64 pingpong cluster1 stages12 group12 swapped",
    )
)
_WIDE_16, _SLIM_16, _SLIM_32, _WIDE_64, _SLIM_64 = NARROW_TILES


def takes(n: int, k: int) -> bool:
    """Whether a weight [n, k] is of sizes like those that were measured."""
    return n % 8 == 0 and k % 8 == 0 and n >= _LEAST_COLUMNS and k >= _LEAST_K


def narrow(m: int, n: int, k: int, num_sms: int, bare: bool = False) -> Config | None:
    """The configuration for x [m, k] and w [n, k] of up to 64 rows; None where cuBLAS is as fast.

    ``bare``: there is no epilogue.
    """
    if not 0 < m <= MOST_ROWS or not takes(n, k) or (bare and n * k < _LEAST_ALONE):
        return None
    wide, slim = (_WIDE_16, _SLIM_16) if m <= 16 else (_WIDE_64, _SLIM_64)
    if 16 < m <= 32:
        wide = slim = _SLIM_32
    tiles = -(-n // slim.tile_m)
    # An epilogue of its own costs what a few rows' second round does, not what more rows' does.
    enough = 0.0 if m <= 16 and not bare else _FULL
    if tiles > _FEW_TILES and _filled(tiles, num_sms) < enough:
        return None
    if bare and m <= 16 and k > 4096 and tiles > _FEW_TILES:
        return None  # 8x8192->8192 takes as long as cuBLAS
    return wide if _filled(-(-n // wide.tile_m), num_sms) > 0.9 else slim


def _filled(tiles: int, num_sms: int) -> float:
    """The share of the multiprocessors' rounds that is tiles."""
    return tiles / (num_sms * -(-tiles // num_sms))
