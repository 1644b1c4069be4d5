"""When a residual that a next kernel would add in passing is added by the 16-bit GEMM."""

from __future__ import annotations

import pytest

from fusepass.ir import DType, Epilogue
from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan.demand import Demand
from fusepass.kernels.plan.model import RESIDUAL_ALLOWANCE, cublas_seconds

Shape = tuple[int, int, int]  # m, n, k


def demand_of(text: str) -> Demand:
    demand = Demand.of(Epilogue.parse(text), DType.BF16)
    assert isinstance(demand, Demand), demand
    return demand


ONE, TWO, SCALED = "add(mat0)", "add(mat0) add(mat1)", "mul(col0) add(mat0)"
# Measured with the epilogue and alone, times over cuBLAS, benchmarks/NOTES.md: what the plan picks.
LONG: list[tuple[str, Shape, float, float]] = [
    (ONE, (8192, 2560, 10240), 0.959, 0.985),
    (TWO, (8192, 2560, 10240), 0.965, 0.985),
    (TWO, (8192, 4096, 16384), 0.987, 0.987),
    (TWO, (8192, 6144, 24576), 0.980, 0.996),
    (TWO, (8192, 4544, 18176), 1.000, 0.989),
    (TWO, (8192, 2048, 8192), 0.968, 0.943),
    (ONE, (16384, 4096, 1024), 0.886, 0.845),
    (ONE, (8192, 768, 3072), 0.981, 0.959),
    (ONE, (16384, 1024, 4096), 0.973, 0.958),
    ("mul(mat0:bool) mul(1.25) add(mat1)", (16384, 1024, 4096), 0.993, 0.959),
    (ONE, (4096, 1152, 1152), 1.037, 0.984),
    (ONE, (12000, 384, 1536), 1.043, 0.965),
    (SCALED, (12544, 384, 1536), 1.045, 0.984),
]
SHORT: list[tuple[str, Shape, float, float]] = [
    (ONE, (3200, 768, 3072), 1.049, 1.0),
    (ONE, (3136, 768, 3072), 1.040, 1.0),
    (ONE, (4096, 1152, 4608), 1.029, 1.0),
]


def chosen(text: str, shape: Shape, spared: float | None) -> plan.Config | None:
    return plan.choose(*shape, False, demand_of(text), 132, False, spared)


def test_the_model_has_kernels_that_read_a_matrix_slower_beside_cublas_than_they_are() -> None:
    slower = []
    for text, shape, added, _ in (*LONG, *SHORT):
        demand = demand_of(text)
        ours = plan.seconds(plan.candidates(*shape, False, demand)[0], *shape, demand)
        slower.append(ours / cublas_seconds(*shape) / added)
    assert min(slower) > 1
    assert sum(slower) / len(slower) == pytest.approx(RESIDUAL_ALLOWANCE, abs=0.015)


def read(shape: Shape) -> float:
    """The time of a matrix's bytes, times over cuBLAS's."""
    return 2 * shape[0] * shape[1] / 4.34e12 / cublas_seconds(*shape)


@pytest.mark.parametrize(("text", "shape", "added", "alone"), LONG)
def test_what_is_taken_was_faster_by_what_was_measured(
    text: str, shape: Shape, added: float, alone: float
) -> None:
    """Whether a norm behind it writes the sum, too, or reads it alone."""
    mats = len(demand_of(text).mats)
    for spared in (mats, mats + 1):
        assert chosen(text, shape, spared) is not None
    assert added <= alone + mats * read(shape)


@pytest.mark.parametrize(("text", "shape", "added", "alone"), SHORT)
def test_short_ones_are_taken_where_a_norm_spares_two_matrices(
    text: str, shape: Shape, added: float, alone: float
) -> None:
    assert chosen(text, shape, 2) is not None and added <= alone + 2 * read(shape)
    if added > alone + read(shape):
        assert chosen(text, shape, 1) is None


def test_a_norm_that_spares_less_than_was_measured_keeps_its_residual() -> None:
    """wav2vec 2.0's, behind the sum: 1.098 times cuBLAS's, and a matrix is 0.05."""
    assert chosen(ONE, (3992, 768, 3072), 1) is None


def test_a_residual_that_a_norm_would_add_is_taken_where_the_norm_gains_more() -> None:
    taken = {None: 0, 1: 0, 2: 0, 3: 0}
    shapes = [shape for text, shape, *_ in (*LONG, *SHORT) if text == ONE]
    for shape in [*shapes, (512, 768, 3072), (1576, 768, 3072)]:
        some = [chosen(ONE, shape, spared) for spared in taken]
        for spared, config in zip(taken, some, strict=True):
            taken[spared] += config is not None
        # The more it is spared, the rather; and by the same kernel.
        assert len({c for c in some if c is not None}) <= 1
    assert taken[1] < taken[2] <= taken[3] <= taken[None]
    assert chosen(ONE, (512, 768, 3072), 2) is None
    assert chosen(ONE, (16384, 768, 3072), 1) is not None


def test_a_product_alone_is_not_left_to_many_tiles_of_64_rows() -> None:
    """Measured 1.32 and 1.36 of cuBLAS's with 64x160 and 64x128, swapped; 1.16 and, of 128x128,
    0.83."""
    bare = Demand.plain(bare=True)
    assert plan.choose(12544, 384, 384, False, bare) is None
    config = plan.choose(16384, 256, 256, False, bare)
    assert config is not None and config.tile_m == 128
