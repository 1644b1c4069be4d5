"""Products without an epilogue: the model, corrected by what they took, and when ours is taken.

Behind such a product there is nothing else to gain, so ours must be faster than the framework's
beyond doubt. The figures are of benchmarks/NOTES.md.
"""

from __future__ import annotations

from .configs import Config
from .demand import Demand
from .model import cublas_seconds, length, seconds

# Times the model: of a long problem; where a tile's end is not hidden; and where three consumers
# share a tile of a weight gradient (77 products).
_LONG, _SHOWN, _OF_THREE = 0.966, 1.025, 0.93
_ROWS = 768  # and columns of the output, that those products had at least
_SLOWER = {(128, 112): 1.04, (128, 168): 1.05}  # tiles, in 13 and 9 of 307 products
# The framework's GEMM must be slower by so much, a factor and seconds, by the model: that is off by
# some per cent, of short problems by a part of a launch.
_MARGIN = 1.02, 0.8e-6
# What a bias adds to the framework's GEMM, and nothing to ours, where it counts: from so many rows
# and seconds on. Of less, ours was ahead by no more than it gains from starting under the end of a
# kernel of its own kind, some 0.9 us, which behind others it does not.
_BIAS, _BIASED_ROWS, _BIASED_SECONDS = 0.6e-6, 256, 25e-6
# Longest K of tiles of 64 rows: of more the framework's, which splits K, was 0.84 of its model.
_LOW_K = 1152


def alone_seconds(
    config: Config, m: int, n: int, k: int, num_sms: int, orders: tuple[bool, bool]
) -> float:
    """The modelled time of a product without an epilogue, as far as it is known better."""
    modelled = seconds(config, m, n, k, Demand.plain(bare=True), num_sms, orders)
    if min(m, n) >= _ROWS:
        modelled *= 1 - (1 - _LONG) * length(m, n, k)
    if config.consumers > config.turns and all(orders):
        modelled *= _OF_THREE
    modelled *= _SLOWER.get((config.tile_m, config.tile_n), 1.0)
    return modelled if config.pingpong else modelled * _SHOWN


def torchs_seconds(m: int, n: int, k: int, num_sms: int, biased: bool = False) -> float:
    """The modelled time of the framework's GEMM alone, which may add a bias."""
    alone = cublas_seconds(m, n, k, num_sms)
    counts = biased and m >= _BIASED_ROWS and alone >= _BIASED_SECONDS
    return alone + _BIAS if counts else alone


def is_faster(seconds: float, torchs: float) -> bool:
    """Whether ours of so many modelled seconds is faster than the framework's beyond doubt."""
    factor, more = _MARGIN
    return seconds * factor + more <= torchs


def is_taken(
    config: Config,
    shape: tuple[int, int, int],
    num_sms: int,
    orders: tuple[bool, bool],
    biased: bool,
) -> bool:
    """Whether ``config``, the best of ours, runs a product of m, n and k without an epilogue."""
    if config.tile_m == 64 and shape[2] > _LOW_K:
        return False
    torchs = torchs_seconds(*shape, num_sms, biased)
    return is_faster(alone_seconds(config, *shape, num_sms, orders), torchs)
