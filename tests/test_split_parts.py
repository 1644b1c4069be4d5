"""float32 whose K is split and multiplied in parts: what the kernels make of them, on the host."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from segments_device import Segments
from split_device import Pieces, SplitKernels
from split_model import (
    TOP,
    exact,
    fp16x3,
    fp16x3_in_parts,
    fused_in_parts,
    sequential,
    unsafe_in_parts,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from accuracy import CASES, within_contract


def values(part: Pieces) -> np.ndarray:
    """The pieces of a matrix stored [K, rows], as [rows, K] of float64."""
    return (part.hi.astype(np.float64) + part.lo.astype(np.float64) * 2.0**-11).T


def test_sums_of_parts_get_the_scales_of_the_whole(host_compiler: str, tmp_path: Path) -> None:
    """Rows of zeros in a part, of parts 2^90 apart, tiny and huge ones; odd sizes."""
    torch.manual_seed(0)
    m, n, k, depth, segment = 70, 100, 300, 128, 64
    x, w = torch.randn(m, k), torch.randn(n, k)
    x[1, :depth] = 0
    x[2, depth:] *= 2.0**-90
    w[3] *= 2.0**-100
    w[4, :depth] *= 2.0**90
    w[5] = 0
    x[m - 1] *= 2.0**60
    kernels = SplitKernels(host_compiler, tmp_path)
    split = [
        [kernels("columns", np.ascontiguousarray(p.T.numpy())) for p in matrix.split(depth, 1)]
        for matrix in (x, w)
    ]
    whole = [kernels.join(parts, depth) for parts in split]
    sums = np.stack([
        values(a)[:, at : at + segment] @ values(b)[:, at : at + segment].T
        for a, b in zip(*split, strict=True)
        for at in range(0, a.hi.shape[0], segment)
    ]).astype(np.float32)  # fmt: skip
    facts = [
        (np.stack([p.detail for p in parts]), joined.detail)
        for parts, joined in zip(split, whole, strict=True)
    ]
    z = Segments(host_compiler, tmp_path)(sums, depth // segment, *facts)
    shift = whole[0].exponent.astype(float)[:, None] + whole[1].exponent - 2 * TOP
    expected = x.double() @ w.double().T
    bound = x.double().abs() @ w.double().abs().T
    assert (abs(z * 2.0**shift - expected.numpy()) <= 2.0**-21 * bound.numpy()).all()


@pytest.mark.parametrize("name", CASES)
def test_the_contract_is_kept_in_parts(name: str) -> None:
    torch.manual_seed(0)
    x, w, _ = CASES[name](16, 16, 400)
    z = fused_in_parts(x, w, 128)
    assert within_contract(z, sequential(x, w), x, w, torch.zeros(16))


ORDINARY = ("uniform(0, 1)", "normal", "uniform, mean 1000", "small integers", "near 1e-30")


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_data_in_parts_takes_the_fast_path(name: str) -> None:
    torch.manual_seed(7)
    x, w, _ = CASES[name](16, 16, 512)
    assert not unsafe_in_parts(x, w, 128).any()


def test_what_is_unsafe_in_one_part_is_found() -> None:
    """Outliers of x where w is small, and the reverse: what a part loses counts for all of K."""
    torch.manual_seed(8)
    x, w = torch.randn(16, 512), torch.randn(16, 512)
    x[:, 300] *= 1e6
    w[:, 300] *= 1e-6
    w[:, 310] *= 1e6
    x[:, 310] *= 1e-6
    assert unsafe_in_parts(x, w, 128).float().mean() > 0.9
    assert torch.equal(fused_in_parts(x, w, 128), exact(x, w))


def test_an_outlier_costs_the_digits_of_its_own_part_alone() -> None:
    """A row's scale is of a part: of the row split whole, every small element would lose some."""
    torch.manual_seed(9)
    x, w = torch.randn(16, 512), torch.randn(16, 512)
    x[:, :128] *= 2.0**34
    w[:, :128] *= 2.0**-44
    expected = x.double() @ w.double().T

    def error(z: torch.Tensor) -> float:
        return float((z.double() - expected).norm() / expected.norm())

    assert error(fp16x3_in_parts(x, w, 128)) < 2.0**-22 < 2.0**-18 < error(fp16x3(x, w))
