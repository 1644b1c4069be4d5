"""Which configuration of the 16-bit GEMM is the fastest, apart from how long it takes."""

from __future__ import annotations

from .configs import Config
from .demand import Demand
from .model import COSTS, Costs, seconds

# Fitted to what was fastest beside matrices, where one result is stored and none summed
# (benchmarks/NOTES.md). Their times, which decide against other kernels, are the model's own.
_BESIDE_MATRICES = Costs(work=(0.8, 2.5), mat=(12.0, 12.6), transposed=0.985)

# How much slower tiles of m x n are, beside others, than the model has them: where no matrix is
# read, 1 to 2.5% and 2 to 4% in twelve problems; beside matrices, by the same 54.
_SLOWER = {(128, 208): 1.015, (128, 256): 1.02}
_SLOWER_BESIDE = {(128, 168): 1.02, (128, 256): 1.025}


def rank(
    config: Config,
    shape: tuple[int, int, int],
    demand: Demand,
    num_sms: int,
    orders: tuple[bool, bool],
) -> float:
    """The less, the sooner ``config`` is taken for a ``shape`` of m, n and k.

    ``demand``, ``num_sms`` and ``orders`` are those of ``model.seconds``.
    """
    one = len(demand.stores) == 1 and not (demand.sums or demand.head)
    costs = _BESIDE_MATRICES if demand.mats and one else COSTS
    slower = (_SLOWER_BESIDE if demand.mats else _SLOWER).get((config.tile_m, config.tile_n), 1.0)
    return slower * seconds(config, *shape, demand, num_sms, orders, costs)
