"""A residual stream that lies as a convolution left it, [B, S, C] of [B, C, S]: where nothing tells
how it lies, a Linear's result is added to it as to any other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from epilogues import CHANCE, error
from graphs import fuse
from torch import Tensor, nn

C = 16
Last = Callable[[Tensor, Tensor], object]
SCALED = "mul(col0) add(mat0)"


class Blocks(nn.Module):
    """Two blocks, ``x + gamma * linear(norm(x))``, behind a convolution; ``last`` of x, a token."""

    def __init__(self, last: Last) -> None:
        super().__init__()
        self.patches, self.last = nn.Conv2d(3, C, 4, 4), last
        self.norms, self.linears = (
            nn.ModuleList(kind() for _ in range(2))
            for kind in (lambda: nn.LayerNorm(C), lambda: nn.Linear(C, C))
        )
        self.gamma, self.token = (nn.Parameter(torch.randn(s)) for s in ((C,), (1, 1, C)))

    def forward(self, image: Tensor) -> object:
        x = self.patches(image).flatten(2).transpose(1, 2)
        for norm, linear in zip(self.norms, self.linears, strict=True):
            x = x + self.gamma * linear(norm(x))
        return self.last(x, self.token.expand(len(x), -1, -1))


def joined(x: Tensor, token: Tensor) -> Tensor:
    return torch.cat((token, x), dim=1)


def copied(x: Tensor, token: Tensor) -> Tensor:
    return x.contiguous()


def normed(x: Tensor, token: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, (C,))


def returned(x: Tensor, token: Tensor) -> Tensor:
    return x


def copied_as_it_lies(x: Tensor, token: Tensor) -> Tensor:
    return x.clone()


def convolved(x: Tensor, token: Tensor) -> Tensor:
    pixels = x.transpose(1, 2).unflatten(-1, (4, 4))
    return nn.functional.conv2d(pixels, pixels.new_ones(2, C, 2, 2))


@pytest.mark.parametrize(
    ("last", "taken"),
    [
        (joined, True),
        (copied, True),
        (normed, True),
        (returned, False),
        (copied_as_it_lies, False),
        (convolved, False),
    ],
)
def test_what_tells_how_it_lies(last: Last, taken: bool) -> None:
    """No less exact than eager, and in the same memory, whatever becomes of the stream."""
    model, exact = Blocks(last).eval(), Blocks(last).eval().double()
    exact.load_state_dict(model.state_dict())
    image = torch.randn(2, 3, 16, 16)
    torch._dynamo.reset()
    fused = fuse(model)
    with torch.no_grad():
        found, eager, right = fused(image), model(image), exact(image.double())
    assert fused.epilogues.count(SCALED) == (2 if taken else 0), fused.reasons
    assert isinstance(found, Tensor) and found.stride() == eager.stride()
    assert error(found, right) <= error(eager, right) + CHANCE[found.dtype]
