"""The modelled time of the 16-bit GEMM grows with the problem and with what its epilogue does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from test_plan import EVERY

from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan.demand import Demand
from fusepass.kernels.plan.sm90 import Config

_SIZES = (65, 128, 129, 1000, 2048, 8192, 8200, 30000)


def _bigger(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The shape with one of its sizes larger, each in its turn; K stays as aligned."""
    for axis, size in enumerate(shape):
        yield (*shape[:axis], size + (16 if size % 3 else 640), *shape[axis + 1 :])


@pytest.mark.parametrize("config", EVERY, ids=str)
def test_a_bigger_problem_is_never_modelled_faster(config: Config) -> None:
    demands = [
        d for d in (Demand(), Demand(stores=(2, 2)), Demand(mats=(2,))) if config.chunk_units(d)
    ]
    for shape in itertools.product(_SIZES, repeat=3):
        one, *more = seconds = [plan.seconds(config, *shape, demand) for demand in demands]
        for bigger in _bigger(shape):
            for demand, shortest in zip(demands, seconds, strict=True):
                assert plan.seconds(config, *bigger, demand) >= shortest
        assert 0 < plan.seconds(config, *shape, Demand(bare=True)) <= one <= min(more)


def test_a_bigger_problem_is_never_modelled_faster_in_two_kernels() -> None:
    for shape in itertools.product(_SIZES, repeat=3):
        seconds = plan.hybrid_seconds(*shape)
        assert all(plan.hybrid_seconds(*bigger) >= seconds for bigger in _bigger(shape))
