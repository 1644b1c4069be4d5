"""A number a column of each group of rows: gates of adaptive layer norms, [B, 1, N]."""

from __future__ import annotations

import copy

import pytest
import torch
from epilogues import CHANCE, error
from graphs import fuse
from small_models import DiTBlock
from torch import Tensor, nn

WIDE = 128  # of a token
GATED = "mul(col0) add(mat0)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_gates_of_a_dit_block(dtype: torch.dtype) -> None:
    block, x = DiTBlock(WIDE, 4).to(dtype), torch.randn(3, 64, WIDE, dtype=dtype)
    c = torch.randn(3, WIDE, dtype=dtype)
    with torch.no_grad():
        fused = fuse(block)
        found, eager = fused(x, c), block(x, c)
        exact = copy.deepcopy(block).double()(x.double(), c.double())
    assert fused.epilogues == [GATED, "gelu_tanh", GATED]
    assert error(found, exact) <= error(eager, exact) + CHANCE[dtype]


def gated(
    rows: tuple[int, ...], gate: tuple[int, ...], hopper: bool, dtype: torch.dtype,
    k: int = 24, n: int = 40,
) -> tuple[list[str], list[str]]:  # fmt: skip
    """Sites and reasons of ``residual + linear * gate``, which is right."""
    linear = nn.Linear(k, n, dtype=dtype)
    x, residual, factor = (torch.randn(s, dtype=dtype) for s in ((*rows, k), (*rows, n), gate))

    def model(x: Tensor, residual: Tensor, factor: Tensor) -> Tensor:
        return residual + linear(x) * factor

    torch._dynamo.reset()  # the same lines of other sizes would be traced with symbols
    with torch.no_grad():
        fused = fuse(model, hopper=hopper)
        found, eager = fused(x, residual, factor), model(x, residual, factor)
        linear.double()
        exact = model(x.double(), residual.double(), factor.double())
    assert found.shape == eager.shape
    assert error(found, exact) <= error(eager, exact) + CHANCE[dtype]
    return fused.epilogues, fused.reasons


TWO = "mul(mat0) add(mat1)"


@pytest.mark.parametrize(
    ("rows", "gate", "epilogue"),
    [
        ((2, 64), (2, 1, 40), GATED),
        ((2, 63), (2, 1, 40), TWO),
        ((2, 3, 64), (2, 1, 1, 40), GATED),
        ((2, 3, 64), (2, 3, 1, 40), GATED),
        ((2, 3, 64), (3, 1, 40), TWO),  # the same for each of the first dimension
        ((1, 3, 64), (3, 1, 40), GATED),
        ((2, 3, 64), (1, 3, 1, 40), TWO),
        ((2, 64), (1, 64, 40), TWO),
        ((1, 64), (1, 1, 40), GATED),
        ((2, 64), (2, 1, 1), "mul(row0) add(mat0)"),
    ],
)
def test_which_tensors_are_of_groups(
    rows: tuple[int, ...], gate: tuple[int, ...], epilogue: str
) -> None:
    """The rows of a group lie together, and are so many that a kernel's tiles need not cross."""
    for dtype in (torch.float32, torch.bfloat16):
        assert gated(rows, gate, False, dtype)[0] == [epilogue]


def test_hopper_takes_groups_that_tiles_divide() -> None:
    """There are tiles of 64, 128 and 192 rows; for other groups two kernels, as Inductor has."""
    for group, taken in ((256, True), (192, True), (200, False)):
        epilogues, reasons = gated((4, group), (4, 1, 1024), True, torch.bfloat16, 1024, 1024)
        assert epilogues == ([GATED] if taken else [""] * len(epilogues)), group
        assert taken or "no kernel computes the product and what reads" in " ".join(reasons), group


def test_hopper_takes_any_group_in_float32() -> None:
    for group, epilogue in ((64, GATED), (192, GATED), (50, TWO)):
        epilogues, _ = gated((8, group), (8, 1, 2048), True, torch.float32, 512, 2048)
        assert epilogues == [epilogue]


def test_a_batch_known_at_run_time() -> None:
    """Of a length that is, its rows are no group of a known number."""
    linear = nn.Linear(24, 40)

    def model(x: Tensor, residual: Tensor, gate: Tensor) -> Tensor:
        return residual + linear(x) * gate

    for dynamic, epilogue in ((0, GATED), (1, TWO)):
        with torch.no_grad():
            fused = fuse(model)
            for size in (2, 5):
                rows = (size, 64) if dynamic == 0 else (3, 64 * size)
                x, residual = torch.randn(*rows, 24), torch.randn(*rows, 40)
                gate = torch.randn(rows[0], 1, 40)
                torch._dynamo.mark_dynamic(x, dynamic)
                torch._dynamo.mark_dynamic(residual, dynamic)
                if dynamic == 0:
                    torch._dynamo.mark_dynamic(gate, 0)
                torch.testing.assert_close(fused(x, residual, gate), model(x, residual, gate))
        assert fused.epilogues == [epilogue]


def test_gates_beside_columns_that_are_the_same_for_all() -> None:
    """And two of groups of different sizes."""
    linear = nn.Linear(24, 40)
    cols = torch.randn(40), torch.randn(2, 1, 1, 40), torch.randn(2, 3, 1, 40)

    def model(x: Tensor) -> Tensor:
        return (linear(x) * cols[0] + cols[1]) * cols[2]

    with torch.no_grad():
        fused, x = fuse(model), torch.randn(2, 3, 64, 24)
        torch.testing.assert_close(fused(x), model(x))
    assert fused.epilogues == ["mul(col0) add(col1) mul(col2)"]


def test_a_gradient_through_a_gate() -> None:
    """Its sum over a group's rows is no epilogue's: the product is written for it."""
    torch.manual_seed(0)
    linear = nn.Linear(24, 40, dtype=torch.float64)
    x = torch.randn(2, 64, 24, dtype=torch.float64, requires_grad=True)
    gate = torch.randn(2, 1, 40, dtype=torch.float64, requires_grad=True)

    def model(x: Tensor, gate: Tensor) -> Tensor:
        return torch.tanh(linear(x)) * gate + 1.0

    inputs = (x, gate, linear.weight, linear.bias)
    wanted = torch.autograd.grad(model(x, gate).square().sum(), inputs)
    fused = fuse(model)
    found = torch.autograd.grad(fused(x, gate).square().sum(), inputs)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
