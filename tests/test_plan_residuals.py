"""When a residual that a next kernel would add in passing is added by the 16-bit GEMM."""

from __future__ import annotations

import pytest

from fusepass.ir import DType, Epilogue
from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan.demand import Demand
from fusepass.kernels.plan.model import RESIDUAL_ALLOWANCE, cublas_seconds

RESIDUAL = Demand.of(Epilogue.parse("add(mat0)"), DType.BF16)
assert isinstance(RESIDUAL, Demand)
# Measured with `+ mat` and without an epilogue, times over cuBLAS, benchmarks/NOTES.md.
RESIDUALS = (
    ((8192, 3072, 768), 0.925, 0.858),
    ((16384, 4096, 1024), 0.882, 0.870),
    ((2048, 8192, 8192), 0.994, 1.0),
    ((8192, 768, 3072), 0.991, 0.955),
    ((16384, 1024, 4096), 1.022, 1.0),
    ((50432, 768, 3072), 0.963, 0.946),
)


def _modelled(shape: tuple[int, int, int]) -> float:
    best = plan.candidates(*shape, False, RESIDUAL)[0]
    return plan.seconds(best, *shape, RESIDUAL) / cublas_seconds(*shape)


def test_the_model_has_kernels_that_read_a_matrix_slower_beside_cublas_than_they_are() -> None:
    slower = [_modelled(shape) / added for shape, added, _ in RESIDUALS]
    assert sum(ratio >= RESIDUAL_ALLOWANCE for ratio in slower) == len(RESIDUALS) - 1
    assert sum(slower) / len(slower) - 0.015 > RESIDUAL_ALLOWANCE


@pytest.mark.parametrize(("shape", "added", "alone"), RESIDUALS)
@pytest.mark.parametrize("spared", [1, 2])
def test_what_is_taken_was_faster_by_what_was_measured(
    shape: tuple[int, int, int], added: float, alone: float, spared: int
) -> None:
    read = 2 * shape[0] * shape[1] / 4.34e12 / cublas_seconds(*shape)
    assert plan.choose(*shape, False, RESIDUAL, 132, False, spared) is not None
    assert added <= alone + spared * read


def test_a_residual_that_a_norm_would_add_is_taken_where_the_norm_gains_more() -> None:
    taken = {None: 0, 1: 0, 2: 0, 3: 0}
    for shape in [s for s, _, _ in RESIDUALS] + [(m, 768, 3072) for m in (512, 3136, 3992, 16384)]:
        chosen = [plan.choose(*shape, False, RESIDUAL, 132, False, spared) for spared in taken]
        for spared, config in zip(taken, chosen, strict=True):
            taken[spared] += config is not None
        # The more it is spared, the rather; and by the same kernel.
        assert len({c for c in chosen if c is not None}) <= 1
    assert taken[1] < taken[2] <= taken[3] <= taken[None]
    assert plan.choose(512, 768, 3072, False, RESIDUAL, 132, False, 2) is None
    assert plan.choose(16384, 768, 3072, False, RESIDUAL, 132, False, 1) is not None
