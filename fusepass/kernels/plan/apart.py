"""Epilogues whose statements stand apart, so that the products beside them keep their pace.

What the multiply-adds of an epilogue write into registers goes before the results of the tensor
cores, which can use nearly every cycle: packed closely they take these cycles, one behind the other
they find free ones (benchmarks/NOTES.md). It takes an epilogue longer, and pays where the other
consumer's products last longer still.
"""

from __future__ import annotations

from .configs import Config
from .demand import Demand

_FEWEST_TILES = 7  # of a multiprocessor: of the last one's epilogue nothing is beside products
# The best of what was timed of these programs at K = 768 and at 1024, where the model takes what is
# the best packed closely: a tile of 192 columns transposed, five stages.
_TAKEN = {
    768: Config(128, 192, 4, 1, True, 14),
    1024: Config(128, 192, 4, 2, True, 12, swapped=True),
}
# And of GELU by erf, packed closely.
_TAKEN_FOR_GELU = {768: Config(128, 192, 4, 1, True, 14)}
_REPLACED = [Config(128, 192, 5, cluster, True, 12, swapped=True) for cluster in (1, 2)]


def stand_apart(config: Config, shape: tuple[int, int, int], demand: Demand, num_sms: int) -> bool:
    """Whether they do in the kernel of that configuration, for a ``shape`` of m, n and k."""
    turns = config.pingpong and config.turns == 2
    return turns and 0 < demand.apart <= shape[2] and _are_many(config, shape, num_sms)


def first_taken(
    ranked: list[Config],
    shape: tuple[int, int, int],
    demand: Demand,
    num_sms: int,
    orders: tuple[bool, bool],
) -> list[Config]:
    """``ranked`` by the model, with what is known to be better in front of it."""
    known = _TAKEN if demand.apart else _TAKEN_FOR_GELU if demand.gelu else {}
    taken = known.get(shape[2] // 256 * 256)
    if any(orders) or not ranked or ranked[0] not in _REPLACED:
        return ranked
    if taken is None or taken not in ranked or not _are_many(taken, shape, num_sms):
        return ranked
    return [taken, *(config for config in ranked if config != taken)]


def _are_many(config: Config, shape: tuple[int, int, int], num_sms: int) -> bool:
    rows, columns = (shape[1], shape[0]) if config.swapped else shape[:2]
    tiles = -(-rows // config.tile_m) * -(-columns // config.tile_n)
    return tiles >= _FEWEST_TILES * num_sms
