"""Random transformer layers, and random Linears of one input, as an H200 would have them rewritten:
the pass never fails, and what they compute, forward and backward, is eager's.

A failure of the pass leaves a graph to Inductor, so that a model's results would not show it.
"""

from __future__ import annotations

import random

import pytest
import torch
from graphs import fuse
from torch import Tensor, nn

F = nn.functional
BF16 = torch.bfloat16
ACTIVATIONS = (F.silu, F.gelu, torch.tanh, F.relu, F.mish)
MLPS = ("plain", "gated", "halves", "chain", "sum")
ROWS = ((1, 1), (4, 1), (16, 1), (2, 64), (4, 128), (8, 128))  # batch, length


def exchanged(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


class Layer(nn.Module):
    """Attention and an MLP, each of its parts in one of the ways that models have."""

    def __init__(self, rng: random.Random, width: int, heads: int) -> None:
        super().__init__()
        some = rng.random
        keys = rng.choice((heads, heads // 2))
        self.heads, self.grouped, self.packed = heads, keys != heads, keys == heads and some() < 0.4
        self.rope, self.parallel, self.scaled = some() < 0.5, some() < 0.3, some() < 0.4
        self.mlp, self.activation = rng.choice(MLPS), rng.choice(ACTIVATIONS)
        widths = (width, keys * width // heads, keys * width // heads)
        self.qkv = nn.ModuleList(nn.Linear(width, n, bias=some() < 0.5) for n in widths)
        self.whole, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=some() < 0.3) for _ in range(2))
        self.both, self.down = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y = self.before(x)
        parts = self.whole(y).chunk(3, -1) if self.packed else [layer(y) for layer in self.qkv]
        size = x.shape[-1] // self.heads
        q, k, v = (z.view(*x.shape[:2], -1, size).transpose(1, 2) for z in parts)
        if self.rope:
            q, k = (z * cos + exchanged(z) * sin for z in (q, k))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.grouped)
        z = self.out(z.transpose(1, 2).reshape(x.shape))
        z = z * self.scale if self.scaled else z
        return x + z + self.down(self._hidden(y if self.parallel else self.between(x + z)))

    def _hidden(self, y: Tensor) -> Tensor:
        if self.mlp == "halves":
            a, b = self.both(y).chunk(2, -1)
            return self.activation(a) * b
        if self.mlp == "gated":
            return self.activation(self.gate(y)) * self.up(y)
        if self.mlp == "sum":
            return self.gate(y) + self.up(y)
        z = self.gate(y)
        return F.gelu((z * 0.5).clamp(-2, 2)) if self.mlp == "chain" else self.activation(z)


class Layers(nn.Module):
    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.width, self.heads = rng.choice(((256, 4), (512, 4), (512, 8)))
        layers = (Layer(rng, self.width, self.heads) for _ in range(rng.choice((1, 2))))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, cos, sin)
        return x


def close(found: Tensor | None, wanted: Tensor | None, most: float) -> bool:
    """Whether both are there or neither, and as close as bfloat16's roundings let them be."""
    if found is None or wanted is None:
        return found is wanted
    difference = (found.float() - wanted.float()).norm()
    return bool(difference <= most * wanted.float().norm() + 1e-3)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("seed", range(60))
def test_layers(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model, shape = Layers(rng).to(BF16), rng.choice(ROWS)
    train = rng.random() < 0.5 and shape[1] > 1
    x = torch.randn(*shape, model.width).to(BF16).requires_grad_(train)
    angles = torch.randn(shape[1], model.width // model.heads)
    arguments = (x, angles.cos().to(BF16), angles.sin().to(BF16))
    fused = fuse(model, hopper=True, dynamic=rng.random() < 0.4)
    with torch.set_grad_enabled(train):
        found, wanted = fused(*arguments), model(*arguments)
    assert close(found, wanted, 2e-2)
    if train:
        leaves = [x, *model.parameters()]
        gradients = (
            torch.autograd.grad(out.float().square().mean(), leaves, allow_unused=True)
            for out in (found, wanted)
        )
        assert all(close(a, b, 6e-2) for a, b in zip(*gradients, strict=True))


class Sisters(nn.Module):
    """Linears of one input, and what else a model may do with x, a weight or a result."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.width = rng.choice((256, 512, 768))
        columns = (rng.choice((64, 128, 256, 512, 768)) for _ in range(rng.randint(2, 5)))
        self.layers = nn.ModuleList(
            nn.Linear(self.width, n, bias=rng.random() < 0.5) for n in columns
        )
        self.other = nn.Linear(self.width, self.width)
        self.twist = rng.choice(("none", "x", "weight", "chain", "frozen", "rows", "twice"))
        self.tails = [rng.choice(range(7)) for _ in self.layers]

    def forward(self, x: Tensor) -> list[Tensor]:
        outs: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            w, rows = layer.weight, x
            if i == 1:
                x = x + 1 if self.twist == "x" else self.other(x) if self.twist == "chain" else x
                w = w * outs[0].float().mean().to(w.dtype) if self.twist == "weight" else w
                rows = x[: len(x) // 2] if self.twist == "rows" else x
            elif i == 0 and self.twist == "frozen":
                w = w.detach()
            elif i == 0 and self.twist == "twice":
                outs.append(F.linear(x, w))
            outs.append(self._tail(F.linear(rows, w, layer.bias), self.tails[i]))
        return outs

    @staticmethod
    def _tail(z: Tensor, which: int) -> Tensor:
        if which == 0:
            return z.relu_()
        if which == 1:
            return z.add_(1.0)
        if which == 2:
            return z.view(len(z), -1, 64).transpose(0, 1)
        return (z, z * 0.5, z.softmax(-1), z.float().sum(0))[which - 3]


@pytest.mark.sampled(6)
@pytest.mark.parametrize("seed", range(60))
def test_linears_of_one_input(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model, rows = Sisters(rng).to(BF16), rng.choice((4, 16, 128, 512, 1024))
    train = rng.random() < 0.5
    x = torch.randn(rows, model.width).to(BF16).requires_grad_(train)
    fused = fuse(model, hopper=True, dynamic=rng.random() < 0.4)
    with torch.set_grad_enabled(train):
        found, wanted = fused(x), model(x)
    assert [f.shape for f in found] == [w.shape for w in wanted]
    assert all(close(f, w, 2e-2) for f, w in zip(found, wanted, strict=True))
    assert [f.requires_grad for f in found] == [w.requires_grad for w in wanted]
    if train:
        leaves = [x, *model.parameters()]
        losses = (sum(o.float().square().mean() for o in outs) for outs in (found, wanted))
        gradients = (torch.autograd.grad(loss, leaves, allow_unused=True) for loss in losses)
        assert all(close(a, b, 6e-2) for a, b in zip(*gradients, strict=True))
