"""float32's operands and outputs: the kernel's own source, run on the host."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from store_device import Store

TILES = (64, 128)  # columns


@pytest.fixture(scope="module")
def stores(host_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Store]:
    """The kernel with an epilogue, compiled once for all shapes."""
    return functools.cache(
        lambda text: Store(host_compiler, tmp_path_factory.mktemp("store"), text)
    )


def made(request: pytest.FixtureRequest, text: str) -> Store:
    store: Store = request.getfixturevalue("stores")(text)
    return store


@pytest.mark.parametrize(("m", "n"), [(64, 128), (70, 132), (33, 258), (65, 77)])
def test_every_element_is_stored_once(request: pytest.FixtureRequest, m: int, n: int) -> None:
    store, z = made(request, ""), torch.randn(m, n)
    for columns in TILES:
        assert torch.equal(store(z, [], [torch.float32], columns)[0], z)


@pytest.mark.parametrize(("m", "n", "beside"), [(64, 128, 4), (70, 130, 256), (33, 65, 128)])
def test_columns_of_a_wider_output(
    request: pytest.FixtureRequest, m: int, n: int, beside: int
) -> None:
    """What lies beside them is not written."""
    store, z = made(request, "z, z store:bf16, z col_sum"), torch.randn(m, n)
    dtypes = [torch.float32, torch.bfloat16, torch.float32]
    for columns in TILES:
        out, half, strips = store(z, [], dtypes, columns, beside=beside)
        assert torch.equal(out[:, :n], z) and torch.equal(half[:, :n], z.bfloat16())
        assert out[:, n:].isnan().all() and half[:, n:].isnan().all()
        torch.testing.assert_close(strips.sum(0), z.sum(0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("batch", "rows", "n"), [(1, 64, 128), (5, 14, 140), (3, 33, 65)])
def test_operands_of_any_strides(
    request: pytest.FixtureRequest, batch: int, rows: int, n: int
) -> None:
    """Every second element, one row a batch, transposed, expanded, and of other dtypes."""
    text = (
        "mul(col0) add(col1:bf16) mul(row0) "
        "add(mat0) mul(mat1) add(mat2) mul(mat3:bool) add(mat4:f16)"
    )
    store, m = made(request, text), batch * rows
    z = torch.randn(m, n)
    col = torch.randn(2 * n)[::2], torch.randn(n).bfloat16()
    row = torch.randn(batch, 1, 1).expand(batch, rows, 1)
    mat0, mat1 = torch.randn(batch, rows, n), torch.randn(n, m).t()
    mat2, mat3 = torch.randn(batch, 1, n).expand(batch, rows, n), torch.rand(m, n) < 0.5
    mat4 = torch.randn(m, n + 2).half()[:, 1:-1]
    operands = [*col, row, mat0, mat1, mat2, mat3, mat4]
    expected = (z * col[0] + col[1].float()) * row.reshape(m, 1) + mat0.reshape(m, n)
    expected = (expected * mat1 + mat2.reshape(m, n)) * mat3.float() + mat4.float()
    for columns in TILES:
        out = store(z, operands, [torch.float32], columns)[0]
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


def matrix(m: int, n: int, first: int, extra: int) -> torch.Tensor:
    """Random [m, n] in rows of n + extra floats from ``first`` on, amid NaN."""
    whole = torch.full((m * (n + extra) + 4,), float("nan"))
    whole = whole[(-whole.data_ptr() // 4) % 4 :][first:]
    return whole.as_strided((m, n), (n + extra, 1)).copy_(torch.randn(m, n))


@pytest.mark.parametrize(("m", "n"), [(1, 4), (128, 128), (70, 132), (200, 36)])
def test_matrices_that_come_through_the_ring(
    request: pytest.FixtureRequest, m: int, n: int
) -> None:
    """As many as have their rows at 16 bytes, by turns with those that are read where they are."""
    store = made(request, "add(mat0) mul(mat1) add(mat2)")
    z, last = torch.randn(m, n), matrix(m, n, 0, 0)
    aligned, wide = matrix(m, n, 0, 0), matrix(m, n, 0, 8)
    shifted, odd = matrix(m, n, 1, 3), matrix(m, n, 0, 1)
    turned, same = torch.randn(n, m).t(), torch.randn(n).expand(m, n)
    single = m == 1  # whose row has no other to be at a distance from
    for first, second, bits in [
        (aligned, wide, 3), (shifted, wide, 2), (wide, odd, 3 if single else 1),
        (turned, aligned, 3 if single else 2), (same, shifted, 1 if single else 0),
    ]:  # fmt: skip
        for columns in TILES:
            out = store(z, [first, second, last], [torch.float32], columns, None)[0]
            assert store.mats == bits
            torch.testing.assert_close(out, (z + first) * second + last, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("text", ["mul(mat0:bool) add(mat1)", "add(mat0) mul(mat1:bf16)"])
def test_a_matrix_of_another_dtype_does_not(request: pytest.FixtureRequest, text: str) -> None:
    store, z, mat = made(request, text), torch.randn(70, 132), torch.randn(70, 132)
    for columns in TILES:
        if "bool" in text:
            mask = torch.rand(70, 132) < 0.5
            out, expected = (
                store(z, [mask, mat], [torch.float32], columns, None),
                z * mask + mat,
            )
        else:
            half = torch.randn(70, 132).bfloat16()
            out = store(z, [mat, half], [torch.float32], columns, None)
            expected = (z + mat) * half.float()
        assert store.mats == (2 if "bool" in text else 1)
        torch.testing.assert_close(out[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("groups", "rows", "n"), [(5, 16, 140), (3, 48, 65), (2, 80, 128)])
def test_cols_of_groups_of_rows(
    request: pytest.FixtureRequest, groups: int, rows: int, n: int
) -> None:
    """Of whole warps' rows, whatever a tile has; beside one that is the same for all."""
    store, m = made(request, "mul(col0) add(col1:bf16) mul(col2)"), groups * rows
    z, wide = torch.randn(m, n), torch.full((groups, 3, n), float("nan"))
    wide[:, 1] = torch.randn(groups, n)
    cols = wide[:, 1:2], torch.randn(groups, 1, 2 * n).bfloat16()[..., ::2], torch.randn(n)
    of_row = [c.expand(groups, rows, n).reshape(m, n).float() for c in cols]
    for columns in TILES:
        out = store(z, cols, [torch.float32], columns)[0]
        expected = (z * of_row[0] + of_row[1]) * of_row[2]
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("m", "n"), [(64, 128), (70, 132), (33, 65)])
def test_several_outputs_and_column_sums(request: pytest.FixtureRequest, m: int, n: int) -> None:
    store = made(request, "v0 = add(mat0); v0, z store:f16, v0 col_sum, z store:bf16")
    z, mat = torch.randn(m, n), torch.randn(m, n)
    dtypes = [torch.float32, torch.float16, torch.float32, torch.bfloat16]
    for columns in TILES:
        total, half, strips, bfloat = store(z, [mat], dtypes, columns)
        assert torch.equal(total, z + mat)
        assert torch.equal(half, z.half()) and torch.equal(bfloat, z.bfloat16())
        padded = torch.nn.functional.pad((z + mat).double(), (0, 0, 0, -m % 16))
        expected = padded.unflatten(0, (-1, 16)).sum(1)
        torch.testing.assert_close(strips.double(), expected, rtol=1e-5, atol=1e-5)
