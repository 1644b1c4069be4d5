"""The float32 pre-pass, run on the host from its own source: what a kernel leaves of a matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from split_device import KERNELS, Pieces, SplitKernels
from split_model import TOP, dominates, few, split

WHERE = {
    "shorter": (9, 300),
    "short": (70, 1000),
    "long": (3, 1100),
    "longer": (2, 8200),
    "columns": (70, 600),
    "few_columns": (35, 700),
}


@pytest.fixture(scope="module")
def kernels(host_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> SplitKernels:
    return SplitKernels(host_compiler, tmp_path_factory.mktemp("split"))


def hostile(rows: int, k: int) -> torch.Tensor:
    """Rows of every kind: ordinary, zero, tiny, huge, dominated, few, many binades, not finite."""
    torch.manual_seed(rows * k)
    m = torch.randn(rows, k)
    m[0] *= 2.0 ** torch.randint(-40, 40, (k,)).float()
    m[1 % rows] = 0
    if rows > 8:
        m[2] *= 1e-42
        m[3] *= 1e37
        m[4, 5] = 1e6
        m[5, 6:] = 0
        m[6, k - 1] = float("inf")
        m[7, 0] = float("nan")
    return m


def run(kernels: SplitKernels, name: str, m: torch.Tensor, shares: int = 1, pad: int = 0) -> Pieces:
    """The pieces by rows, whichever way they were stored."""
    stored = (m.T if name.endswith("columns") else m).contiguous().numpy()
    wide = np.full((stored.shape[0], stored.shape[1] + pad), np.nan, np.float32)
    wide[:, : stored.shape[1]] = stored
    found = kernels(name, wide[:, : stored.shape[1]], shares)
    if name.endswith("columns"):
        found.hi, found.lo = found.hi.T, found.lo.T
    return found


def check(found: Pieces, m: torch.Tensor) -> None:
    expected = split(torch.where(m.isfinite().all(1)[:, None], m, 0.0))
    finite = m.isfinite().all(1).numpy()
    assert np.array_equal(found.hi.astype(np.float64), expected.hi.numpy())
    assert np.array_equal(found.lo.astype(np.float64), expected.lo.numpy())
    assert np.array_equal(found.exponent, expected.exponent.numpy())
    assert (np.isinf(found.loss) == ~finite).all()
    norm, loss = expected.norm.numpy(), expected.loss.numpy()
    assert (found.norm >= norm).all() and (found.norm <= norm * 1.002).all()
    known = found.loss[finite]
    assert (known >= loss[finite]).all() and (known <= loss[finite] * 1.01 + 1e-12).all()
    kind = few(expected).int() + 2 * dominates(expected).int()
    assert np.array_equal(found.kind[finite], kind.numpy()[finite])
    moderate = expected.exponent.abs().numpy() <= 50
    plain = moderate & (found.loss == 0) & (found.kind % 2 == 0)
    assert (np.isnan(found.undo) == ~plain).all()
    sign = 1 - 2.0 * dominates(expected).numpy()
    undo = sign * 2.0 ** (expected.exponent.numpy().astype(float) - TOP)
    assert np.array_equal(found.undo[plain], undo[plain])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", KERNELS)
def test_pieces_and_facts_are_the_models(kernels: SplitKernels, name: str) -> None:
    m = hostile(*WHERE[name])
    check(run(kernels, name, m, 2 if name.endswith("columns") else 1), m)


@pytest.mark.parametrize("name", ["columns", "few_columns"])
@pytest.mark.parametrize(
    ("rows", "k", "shares", "pad"), [(1, 1, 1, 0), (33, 65, 2, 3), (6, 40, 4, 1)]
)
def test_columns_of_any_number(
    kernels: SplitKernels, name: str, rows: int, k: int, shares: int, pad: int
) -> None:
    """More CTAs than lines, lines that start at odd addresses, the last columns of a strip."""
    m = hostile(rows, k)
    check(run(kernels, name, m, shares, pad), m)


@pytest.mark.parametrize("name", ["columns", "few_columns"])
def test_columns_of_few_elements_are_listed(kernels: SplitKernels, name: str) -> None:
    """The GEMM would have to read them across the matrix, once for each tile."""
    torch.manual_seed(1)
    m = torch.randn(40, 700)
    places = {1: [0], 2: [5, 699], 31: list(range(3, 640, 91)), 33: [1, 2], 39: list(range(16))}
    for row, at in places.items():
        values = m[row, at] * 2.0**-30
        values[:7] = m[row, at][:7]
        m[row] = 0
        m[row, at] = values
    m[4, 7:] = 2.0**-40  # of few that count, but of many that are not 0
    found = run(kernels, name, m, 2)
    check(found, m)
    assert [sorted(at) for at in found.listed] == [places.get(row, []) for row in range(40)]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", KERNELS)
def test_lines_at_odd_addresses(kernels: SplitKernels, name: str) -> None:
    rows, k = WHERE[name]
    m = hostile(rows, k + 1)
    check(run(kernels, name, m, 1, 2 + k % 2), m)


def test_the_number_of_shares_changes_no_piece(kernels: SplitKernels) -> None:
    m = hostile(20, 500)
    one, four = (run(kernels, "columns", m, shares) for shares in (1, 4))
    for a, b in ((one.hi, four.hi), (one.lo, four.lo), (one.kind, four.kind)):
        assert np.array_equal(a, b)


# --- K in parts -----------------------------------------------------------------------------------


def in_parts(kernels: SplitKernels, m: torch.Tensor, depth: int) -> list[Pieces]:
    return [run(kernels, "columns", part) for part in m.split(depth, 1)]


def check_joined(found: Pieces, m: torch.Tensor, slack: float = 1.01) -> None:
    """Bounds are at least those of the row split whole, and what is unsafe then is so."""
    finite = m.isfinite().all(1).numpy()
    expected = split(torch.where(m.isfinite().all(1)[:, None], m, 0.0))
    assert np.isinf(found.loss[~finite]).all()
    assert np.array_equal(found.exponent[finite], expected.exponent.numpy()[finite])
    norm = expected.norm.numpy()[finite]
    assert (found.norm[finite] >= norm).all() and (found.norm[finite] <= norm * slack).all()
    unsafe = few(expected).int().numpy() + 2 * dominates(expected).int().numpy()
    assert (found.kind[finite] & unsafe[finite] == unsafe[finite]).all()


@pytest.mark.parametrize(("depth", "k"), [(256, 1024), (320, 701), (64, 65)])
def test_parts_know_of_a_row_what_the_whole_would(
    kernels: SplitKernels, depth: int, k: int
) -> None:
    m = hostile(31, k)
    m[8] = 0
    m[8, 3:9] = torch.randn(6)  # of few elements, in a part
    m[9, depth:] = 0  # parts of zeros
    m[10, :depth] *= 2.0**-100
    m[11] *= 2.0**-60  # whose scale is not moderate
    m[12, 0] = float("inf")
    m[12, 1:] = 0
    parts = in_parts(kernels, m, depth)
    found = kernels.join(parts, depth)
    check_joined(found, m)
    whole = run(kernels, "columns", m)
    finite = m.isfinite().all(1).numpy()
    # Each part has a scale of its own: what it loses is no more.
    assert (found.loss[finite] <= whole.loss[finite] * 1.01).all()
    lost = sum((2.0 ** (p.exponent - found.exponent.astype(float)) * p.loss) ** 2 for p in parts)
    assert (found.loss[finite] >= lost[finite] ** 0.5 * 0.999).all()
    plain = (found.loss == 0) & (found.kind % 2 == 0) & (abs(found.exponent) <= 50)
    assert (np.isnan(found.undo) == ~plain).all()
    sign = np.where(found.kind & 2, -1.0, 1.0)
    assert np.array_equal(
        found.undo[plain], (sign * 2.0 ** (found.exponent.astype(float) - TOP))[plain]
    )


def test_ordinary_rows_in_parts_are_safe(kernels: SplitKernels) -> None:
    torch.manual_seed(2)
    m = torch.randn(6, 1024)
    m[1, 600:] = 0
    m[2, ::7] = 0
    m[3, :512] *= 100
    m[4, 512:515] *= 1e-6
    found = kernels.join(in_parts(kernels, m, 256), 256)
    assert (found.kind == 0).all() and (found.loss == 0).all()
    assert not np.isnan(found.undo).any()


def test_an_element_that_dominates_the_row_and_one_that_dominates_a_part(
    kernels: SplitKernels,
) -> None:
    torch.manual_seed(3)
    m = torch.randn(4, 1024)
    m[1, 700] = 1e6
    m[2, 300] = 40.0  # 1600 of 1856 in its part, of 2624 in the row: a quarter and more
    m[3, 256:512] *= 1e-3
    m[3, 300] = 1.0  # of its part alone
    parts = in_parts(kernels, m, 256)
    assert [int(p.kind[3]) for p in parts] == [0, 2, 0, 0]
    assert kernels.join(parts, 256).kind.tolist() == [0, 2, 2, 0]


@pytest.mark.parametrize("listed", [True, False])
def test_rows_of_few_elements_are_listed_across_parts(kernels: SplitKernels, listed: bool) -> None:
    torch.manual_seed(4)
    m = torch.randn(40, 700)
    # The last two: as many as a list takes, of which few count; and one more.
    places = {1: [0], 2: [5, 699], 31: list(range(3, 640, 91)), 39: list(range(0, 640, 40))}
    for row, at in {**places, 38: list(range(0, 646, 38))}.items():
        values = m[row, at] * 2.0**-30
        values[:7] = m[row, at][:7].sign()
        m[row] = 0
        m[row, at] = values
    found = kernels.join(in_parts(kernels, m, 256), 256, listed)
    check_joined(found, m)
    expected = [places.get(row, []) if listed else [] for row in range(40)]
    assert [sorted(at) for at in found.listed] == expected
    assert (found.kind[[1, 2, 31, 38, 39]] & 1).all()


def test_of_a_part_whose_largest_is_smaller_that_one_element_counts(kernels: SplitKernels) -> None:
    """The others may be below 2^-24 of the row's largest."""
    torch.manual_seed(5)
    m = torch.zeros(3, 1024)
    m[0, :6] = 1.5
    m[0, 256:] = torch.rand(768) * 0.5 + 0.25
    m[1, :5] = 1.5
    m[1, 256:] = 2.0**-23
    m[2, :9] = 1.5
    m[2, 256:] = 2.0**-30
    found = kernels.join(in_parts(kernels, m, 256), 256)
    assert (found.kind & 1).tolist() == [0, 0, 0]
    m[0, :5] = 0  # 1, and 3 of other parts
    m[1, :2] = 0
    assert (kernels.join(in_parts(kernels, m, 256), 256).kind & 1).tolist() == [1, 1, 0]
