"""Rows of few elements alone are summed in float64: the kernel's own source, run on the host."""

from __future__ import annotations

import pytest
import torch
from few_device import ROWS, Mend
from torch import Tensor

# Warps that share the work, and columns of a tile: a consumer's, of either tile, and a block's that
# adds segments.
TEAMS = [(4, 64), (4, 128), (12, 64)]


@pytest.fixture(scope="module")
def mend(host_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Mend:
    return Mend(host_compiler, tmp_path_factory.mktemp("few"))


def sparse(rows: int, k: int, few: list[int], count: int) -> tuple[Tensor, Tensor]:
    """Random rows, of which ``few`` have ``count`` elements, the first and last K among them."""
    m, mask = torch.randn(rows, k), torch.zeros(rows, dtype=torch.bool)
    for row in few:
        places = torch.cat([torch.tensor([0, k - 1]), torch.randperm(k - 2)[: count - 2] + 1])
        values = m[row, places] * 2.0 ** torch.randint(-40, 1, (count,)).float()
        m[row] = 0
        m[row, places] = values
        mask[row] = True
    return m, mask


def expected(z: Tensor, x: Tensor, w: Tensor, few: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
    exact = (x.double() @ w.double().T + bias.double()).float()
    return torch.where(few[0][:, None] | few[1], exact, z)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("warps", "columns"), TEAMS)
@pytest.mark.parametrize("km", [False, True])
@pytest.mark.parametrize(("k", "count"), [(5, 3), (700, 9), (5000, 9), (3000, 20)])
def test_only_rows_of_few_elements_are_summed_again(
    mend: Mend, warps: int, columns: int, km: bool, k: int, count: int
) -> None:
    """A group in the middle of the problem, and one at its edge; x and w in either order."""
    torch.manual_seed(k)
    m, n = 2 * ROWS - 3, 2 * columns - 5
    x, few_x = sparse(m, k, [0, 7, 63, 64, 70, m - 1], count)
    w, few_w = sparse(n, k, [1, columns - 1, columns, n - 1], min(count, 5))
    if km:
        x, w = x.T.contiguous().T, w.T.contiguous().T
    for row, column in ((0, 0), (ROWS, columns), (0, columns)):
        a, b = x[row : row + ROWS], w[column : column + columns]
        few = few_x[row : row + ROWS], few_w[column : column + columns]
        bias = torch.randn(columns)
        z = torch.randn(ROWS, columns)
        inside = slice(len(a)), slice(len(b))
        wanted = expected(z[inside], a, b, few, bias[: len(b)])
        assert mend(warps, z, x, w, (few_x, few_w), bias, row, column)
        assert torch.equal(z[inside], wanted)


@pytest.mark.parametrize(("warps", "columns"), TEAMS)
def test_too_many_rows_or_elements_are_left_to_the_whole_sum(
    mend: Mend, warps: int, columns: int
) -> None:
    torch.manual_seed(0)
    k, w, none = 4096, torch.randn(columns, 4096), torch.zeros(columns, dtype=torch.bool)
    bias, z = torch.zeros(columns), torch.zeros(ROWS, columns)
    for lines, takes in ((16, True), (17, False)):
        x, few_x = sparse(ROWS, k, list(range(lines)), 4)
        assert mend(warps, z, x, w, (few_x, none), bias, 0, 0) == takes
    x, few_x = sparse(ROWS, k, [3], 4)
    # A warp has room for 32, and reads every (32 * warps)th place together with its neighbours.
    for more, takes in ((32, True), (32 * warps, False)):  # of the next warp; of the same
        x[3] = 0
        x[3, :32] = 1e-30
        x[3, more] = 1.0
        assert mend(warps, z, x, w, (few_x, none), bias, 0, 0) == takes
