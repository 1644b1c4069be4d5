"""Tails that take a Linear's result in another order of dimensions, as convolutional models do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from epilogues import CHANCE, error
from graphs import Fused, fuse
from torch import Tensor, nn

N, H, W, C = 2, 5, 3, 16
Tail = Callable[[Tensor, Tensor, Tensor], object]


class Block(nn.Module):
    """x [N, C, H, W], in channels-last memory -> a Linear over C -> a tail beside gamma and x."""

    def __init__(self, tail: Tail, gamma: tuple[int, ...] = (C, 1, 1)) -> None:
        super().__init__()
        self.linear, self.tail = nn.Linear(C, C), tail
        self.gamma = nn.Parameter(torch.randn(gamma))

    def forward(self, x: Tensor) -> object:
        z = self.linear(x.permute(0, 2, 3, 1))
        return self.tail(z.permute(0, 3, 1, 2), self.gamma, x)


def pixels(last: bool = True) -> Tensor:
    kept = torch.channels_last if last else torch.contiguous_format
    return torch.randn(N, C, H, W).contiguous(memory_format=kept)


def check(fused: Fused, model: nn.Module, x: Tensor) -> None:
    """As near to float64 as eager is, in the same memory; NaN and infinities where eager's are."""
    leaves = torch.utils._pytree.tree_leaves
    exact = leaves(model.double()(x.double()))
    eager, found = leaves(model.float()(x)), leaves(fused(x))
    for ours, theirs, true in zip(found, eager, exact, strict=True):
        assert ours.dtype is theirs.dtype and ours.stride() == theirs.stride()
        assert error(ours, true) <= error(theirs, true) + CHANCE[ours.dtype]
    x = x.clone()
    x[0, 0, 0, :2] = torch.tensor([torch.nan, torch.inf])
    for ours, theirs in zip(leaves(fused(x)), leaves(model(x)), strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())
        assert torch.equal(ours.isnan(), theirs.isnan())


TURNED: dict[str, tuple[Tail, tuple[int, ...], str]] = {
    "layer scale and residual": (lambda z, g, x: z * g + x, (C, 1, 1), "mul(col0) add(mat0)"),
    "residual first": (lambda z, g, x: x + g * z, (1, C, 1, 1), "mul(col0) add(mat0)"),
    "a layer scale": (lambda z, g, x: z * g, (C, 1, 1), "mul(col0)"),
    "a residual": (lambda z, g, x: z + x, (C, 1, 1), "add(mat0)"),
    "an activation between": (lambda z, g, x: F.relu(z * g) + x, (C, 1, 1),
                              "mul(col0) clamp(0.0, inf) add(mat0)"),
    "a factor a row": (lambda z, g, x: z * g, (H, W), "mul(row0)"),
    "a convolution behind": (
        lambda z, g, x: F.conv2d(z * g + x, g[..., None].expand(C, 1, 3, 3), groups=C), (C, 1, 1),
        "mul(col0) add(mat0)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TURNED)
def test_what_is_behind_a_permutation_is_taken(name: str) -> None:
    tail, gamma, epilogue = TURNED[name]
    model, x = Block(tail, gamma), pixels()
    with torch.no_grad():
        fused = fuse(model)
        check(fused, model, x)
    assert fused.epilogues == [epilogue]
    kinds = {str(n.target) for n in fused.graphs[0].nodes}
    assert not kinds & {"aten.mul.Tensor", "aten.add.Tensor"}


# What stays as it is, to the last node of the graph.
LEFT: dict[str, tuple[Tail, bool]] = {
    "of numbers alone": (lambda z, g, x: F.softmax(z, 1), True),
    "a residual whose order the result takes on": (lambda z, g, x: x + z, False),
    "of the result itself": (lambda z, g, x: z * z.mean(1, keepdim=True), True),
    "an operator that is no stage": (lambda z, g, x: torch.atan2(z, x), True),
    "another type": (lambda z, g, x: z.double() * g.double(), True),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_no_epilogue_stays_where_it_is(name: str) -> None:
    tail, last = LEFT[name]
    model, x = Block(tail), pixels(last)
    with torch.no_grad():
        fused = fuse(model)
        check(fused, model, x)
    assert fused.epilogues == [] and fused.before == fused.after


def test_bitwise_reads_no_tensors() -> None:
    model = Block(lambda z, g, x: z * g + x)
    with torch.no_grad():
        fused = fuse(model, numerics="bitwise")
        fused(pixels())
    assert fused.epilogues == [] and fused.before == fused.after


def test_gradients() -> None:
    model = Block(lambda z, g, x: z * g + x)
    grads = []
    for function, dtype in ((fuse(model), torch.float32), (model, torch.float64)):
        torch.manual_seed(5)
        x = pixels().to(dtype).requires_grad_()
        model.to(dtype).zero_grad()
        weights = torch.randn(N, C, H, W).to(dtype)
        (function(x) * weights).sum().backward()  # type: ignore[operator]
        grads.append([x.grad, *(p.grad.clone() for p in model.parameters())])
    for ours, exact in zip(*grads, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


def test_sizes_that_are_symbols() -> None:
    model = Block(lambda z, g, x: z * g + x)
    with torch.no_grad():
        fused = fuse(model, dynamic=True)
        for size in (4, 6, 9):
            x = torch.randn(3, C, size, size + 1).contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(fused(x), model(x))
    assert fused.epilogues == ["mul(col0) add(mat0)"]
