"""Batches of float32 matrices: whether one kernel of ours is faster than cuBLAS's, by a model.

The kernel (bmm_sm90.cu) has one configuration; nothing else is to be chosen. Times are an H200's.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from .build import build_cubin, device_arch
from .toolchain import BuildError

_TILE_M, _TILE_N, _TILE_K = 128, 64, 64
_LEAST_FULL = 4  # units of work a multiprocessor, or a unit has fewer tiles
_LEAST_SMS = 2
_LEAST_K = 64  # of fewer elements many rows have one that outweighs the others: float64
_LEAST_M = 32  # of fewer rows cuBLAS adds in another order, which is more exact
_LEAST_TILES = 264  # of 128 x 64; of fewer cuBLAS cuts K, which is, too

# Seconds of one multiprocessor.
_X = 0.9e-6  # to read and split 128 x 64 of x
_MULTIPLY = 2.1e-6  # a step of 64 K of a tile
_TILE = 1.1e-6  # a tile's end: its checks and its way to memory
_LAUNCH = 4e-6
_BANDWIDTH = 3.3e12  # bytes a second of the device

_SGEMM = 41e12  # FLOP a second of cuBLAS's batches on the CUDA cores
_SGEMM_SHORT = 32e12  # where K is up to
_SGEMM_SHORT_K = 128
_SGEMM_TILE = 32, 32
_SGEMM_LAUNCH = 4e-6
_CAUTION = 1.05  # the model is off by so much


def seconds(batches: int, m: int, n: int, k: int, num_sms: int = 132) -> float:
    """The modelled time of the kernel for [batches, m, k] by [batches, k, n]."""
    tiles_m, tiles_n, steps = -(-m // _TILE_M), -(-n // _TILE_N), -(-k // _TILE_K)
    strip = strip_of(batches * tiles_m, tiles_n, num_sms)
    units = batches * tiles_m * -(-tiles_n // strip)
    splits = steps * strip if steps > 1 else 1  # of x, in a unit
    unit = splits * _X + strip * (steps * _MULTIPLY + _TILE)
    return _LAUNCH + max(-(-units // num_sms) * unit, _bytes(batches, m, n, k) / _BANDWIDTH)


def strip_of(above: int, tiles_n: int, num_sms: int) -> int:
    """Tiles beside one another that are a unit of work, as bmm_sm90_launch.cpp chooses them."""
    strip = tiles_n
    while strip > 1 and above * -(-tiles_n // strip) < _LEAST_FULL * num_sms:
        strip = (strip + 1) // 2
    return strip


def cublas_seconds(batches: int, m: int, n: int, k: int) -> float:
    """The modelled time of ``aten.bmm``."""
    padded = [-(-size // tile) * tile for size, tile in zip((m, n), _SGEMM_TILE, strict=True)]
    flops = 2.0 * batches * padded[0] * padded[1] * k
    rate = _SGEMM_SHORT if k <= _SGEMM_SHORT_K else _SGEMM
    return _SGEMM_LAUNCH + max(flops / rate, _bytes(batches, m, n, k) / _BANDWIDTH)


def _bytes(batches: int, m: int, n: int, k: int) -> float:
    return 4.0 * batches * (m * k + n * k + m * n)


@lru_cache(maxsize=4096)
def chosen(batches: int, m: int, n: int, k: int, num_sms: int) -> bool:
    """Whether the kernel should run [batches, m, k] by [batches, k, n] of float32."""
    if num_sms < _LEAST_SMS or n < 1 or m < _LEAST_M or k < _LEAST_K:
        return False
    if batches * -(-m // _TILE_M) * -(-n // _TILE_N) < _LEAST_TILES:
        return False
    ours = seconds(batches, m, n, k, num_sms)
    return _CAUTION * ours < cublas_seconds(batches, m, n, k)


def cubin(arch: str) -> Path:
    """The kernels, built.

    Raises:
        BuildError: if they cannot be.
    """
    # Those that read element by element keep a few numbers in memory.
    return build_cubin("bmm_sm90.cu", {}, arch, may_spill=True)


def plan_on(batches: int, m: int, n: int, k: int, device: int) -> str:
    """The answer of ``fusepass::_plan_bmm``: the cubin's path, "" where torch's product runs."""
    import torch

    from .library import warn_slower

    arch = device_arch(device)
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    if arch != "90a" or not chosen(batches, m, n, k, num_sms):
        return ""
    try:
        return str(cubin(arch))
    except (BuildError, OSError) as error:
        warn_slower("batches of matrices are torch's own products", error)
        return ""
