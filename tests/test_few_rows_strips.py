"""Few rows of 16 bits in strips of 64 columns: which elements meet, by the kernel's own source."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from strips_device import StripSums

from fusepass.kernels.plan.few import Config

Make = Callable[[Config, int], StripSums]


@pytest.fixture(scope="module")
def sums(host_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Each build once."""
    folder = tmp_path_factory.mktemp("strips")
    return lru_cache(lambda config, weights: StripSums(host_compiler, folder, config, weights))


def _config(w_is_kn: bool, rows: int, warps: int, split: int) -> Config:
    return Config(rows, 64, warps, 1, 1, w_is_kn=w_is_kn, split=split)


def _weights(count: int, n: int, k: int, w_is_kn: bool) -> list[torch.Tensor]:
    """Rows in whole lines of memory, and NaN between and behind them."""
    rows, columns = (k, n) if w_is_kn else (n, k)
    apart = -(-columns // 64) * 64 + 64
    stored = []
    for _ in range(count):
        memory = torch.full((rows * apart + 64,), float("nan"), dtype=torch.bfloat16)
        first = -memory.data_ptr() // 2 % 64
        w = memory[first : first + rows * apart].view(rows, apart)[:, :columns]
        stored.append(w.copy_(torch.randn(rows, columns)))
    return [w.t() for w in stored] if w_is_kn else stored


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("w_is_kn", [False, True])
@pytest.mark.parametrize(
    ("rows", "warps", "split", "weights"), [(8, 4, 8, 1), (16, 8, 1, 2), (16, 8, 4, 1)]
)
def test_every_product_once(
    w_is_kn: bool, rows: int, warps: int, split: int, weights: int, sums: Make
) -> None:
    """Sizes at an edge of everything, and below one step; memory that is not theirs is NaN."""
    torch.manual_seed(0)
    run = sums(_config(w_is_kn, rows, warps, split), weights)
    step = 32 * warps * split
    for m, n, k in ((rows, 64, 8), (1, 72, step + 40), (rows - 3, 136, 2 * step - 8)):
        n = n if w_is_kn else n - 3
        x = torch.full((m, k + 8), float("nan"), dtype=torch.bfloat16)[:, :k]
        x.copy_(torch.randn(m, k))
        w = _weights(weights, n, k, w_is_kn)
        found, _ = run(x, w)
        for got, each in zip(found, w, strict=True):
            exact = x.double() @ each.double().t()
            scale = x.double().abs() @ each.double().abs().t()
            assert ((got.double() - exact).abs() <= 1e-6 * scale).all(), f"{m}x{k}->{n}"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("w_is_kn", [False, True])
def test_what_is_asked_for_is_what_is_loaded(w_is_kn: bool, sums: Make) -> None:
    """Every line of the first loads, and none besides."""
    torch.manual_seed(0)
    run = sums(_config(w_is_kn, 8, 4, 8), 1)
    x, w = torch.randn(2, 1024).bfloat16(), _weights(1, 192, 1024, w_is_kn)
    assert run(x, w)[1] == 0
