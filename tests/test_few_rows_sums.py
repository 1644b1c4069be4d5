"""float32's sums of few rows: the contract at the plan's longest K, by the kernel's own source."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from few_rows_device import FewRowsSums
from torch import Tensor

from fusepass.kernels.plan.few import Config, choose
from fusepass.kernels.plan.problem import FLOAT32

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from accuracy import CASES, within_contract

COLUMNS = 200


def short_sums(x: Tensor, w: Tensor, count: int) -> Tensor:
    """x w^T in ``count`` sums of FMAs, added as a tree in float32, as cuBLAS may have it.

    A product and a sum in float64, rounded, are an FMA but for one in some 2^29.
    """
    terms = x[:, None].double() * w.double()
    parts = terms.unflatten(-1, (-1, count, 4)).movedim(-2, 2).flatten(3)
    sums = torch.zeros(parts.shape[:3])
    for term in parts.unbind(-1):
        sums = (sums.double() + term).float()
    while sums.shape[-1] > 1:
        sums = sums[..., ::2] + sums[..., 1::2]
    return sums[..., 0]


@pytest.fixture(scope="module")
def sums(
    host_compiler: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Config], FewRowsSums]:
    """Each build once."""
    folder = tmp_path_factory.mktemp("few")
    return lru_cache(lambda config: FewRowsSums(host_compiler, folder, config))


@pytest.mark.sampled(4)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("name", "m", "k"),
    [
        ("uniform(0, 1)", 1, 8192),  # the longest chains
        ("uniform(0, 1)", 2, 32768),
        ("normal", 2, 32768),
        ("uniform(0, 1)", 5, 12288),
    ],
)
def test_no_worse_than_256_sums(
    name: str, m: int, k: int, sums: Callable[[Config], FewRowsSums]
) -> None:
    torch.manual_seed(k)
    x, w, b = CASES[name](m, COLUMNS, k)
    config = choose(FLOAT32, m, COLUMNS, k)
    assert config is not None
    z = sums(config)(x, w)
    assert within_contract(z, short_sums(x, w, 256), x, w, torch.zeros_like(b))


@pytest.mark.parametrize(("m", "k"), [(2, 8204), (2, 16416), (2, 20484), (3, 21844), (7, 4100)])
def test_every_product_counts_once(m: int, k: int, sums: Callable[[Config], FewRowsSums]) -> None:
    """K that ends within a chain, within a step, and a step after a chain."""
    torch.manual_seed(k)
    config = choose(FLOAT32, m, 37, k)
    assert config is not None and config.chain
    x, w, _ = CASES["uniform(0, 1)"](m, 37, k)
    z, exact = sums(config)(x, w), x.double() @ w.double().T
    assert float(((z - exact) / exact).abs().max()) <= 2.0**-22  # a product is 2^-14 of a sum
