"""Linears of one input, and what else a model does between them."""

from __future__ import annotations

import torch
from graphs import Fused
from torch import Tensor, nn

F = nn.functional
BF16 = torch.bfloat16
linears = torch.ops.fusepass.linears.default
ROWS, WIDTH = 256, 128


class Attention(nn.Module):
    """Queries, keys and values by Linears of their own; ``parts`` says of what."""

    def __init__(self, width: int = WIDTH, kv: int = WIDTH, bias: bool = True) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, n, bias=bias) for n in (width, kv, kv))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(x), self.k(x), self.v(x)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.view(*x.shape[:-1], -1, 32).transpose(-3, -2) for t in self.parts(x))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=k.shape[-3] != q.shape[-3])


def joined(fused: Fused) -> list[tuple[int, ...]]:
    """The columns of the Linears of each launch."""
    found = (n for graph in fused.graphs for n in graph.nodes if n.target is linears)
    return [tuple(w.meta["val"].shape[0] for w in n.args[1]) for n in found]


def left(fused: Fused) -> int:
    """How many products of the graphs are by themselves."""
    kinds = ("aten.mm", "aten.addmm", "fusepass.linear.", "fusepass.gemm")
    return sum(str(n.target).startswith(kinds) for g in fused.graphs for n in g.nodes)


class WithoutABias(Attention):
    """As Whisper's keys are."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Linear(WIDTH, WIDTH, bias=False)


class Convolutions(Attention):
    """Weights stored [K, N], as GPT-2's."""

    def __init__(self) -> None:
        super().__init__()
        self.ws = nn.ParameterList(torch.randn(WIDTH, n) / 11 for n in (128, 64, 64))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (torch.addmm(m.bias[: w.shape[1]], x.flatten(0, -2), w).view(*x.shape[:-1], -1)
                   for m, w in zip((self.q, self.k, self.v), self.ws, strict=True))  # fmt: skip
        return q, k, v


class Biased(Attention):
    """A product, a view and the bias behind it."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = ((x @ m.weight.t()) + m.bias for m in (self.q, self.k, self.v))
        return q, k, v


class Tied(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.k = self.q


class Later(Attention):
    """Weights that are computed, of parameters alone, when they are needed."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q(x)
        k = F.linear(x, self.k.weight * 0.5, self.k.bias)
        return q, k, F.linear(x, self.v.weight + 1.0, self.v.bias)


class Normed(Attention):
    """What is computed of one stands between it and the next."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = F.layer_norm(self.q(x).float(), (WIDTH,)).to(x.dtype)
        k = F.layer_norm(self.k(x).float(), (WIDTH,)).to(x.dtype)
        return q, k, self.v(x)


class Unused(Attention):
    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, _, v = super().parts(x)
        return q, v, v


class Activated(Attention):
    """A site with an epilogue stays one."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().parts(x)
        return F.gelu(q), k, v


class Two(nn.Module):
    """Layers that attend to one memory: of each its keys and values, not all layers' at once."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(2))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        for layer in self.layers:
            q, k, v = (t.view(*t.shape[:-1], -1, 32).transpose(-3, -2)
                       for t in (layer.q(x), layer.k(memory), layer.v(memory)))  # fmt: skip
            x = F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2)
        return x


class Five(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, n) for n in (64, 72, 80, 88, 96))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.softmax(layer(x), -1) for layer in self.layers]


class Chained(nn.Module):
    """One of two results is itself what the next two read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = x.flatten(0, -2)
        a, b = self.a(rows), self.b(rows)
        return a.softmax(-1), self.c(b), self.d(b)


class InPlace(Attention):
    """A result that is written over afterwards."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().parts(x)
        v.softmax(-1)
        k[..., 0] = 1.0
        return q, k, v


class OfAResult(Attention):
    """A weight that the first one's result is a part of."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q(x)
        k = F.linear(x, self.k.weight + q.mean(), self.k.bias)
        return q, k, k


class Drawn(Attention):
    """Of what is drawn at random the order is kept."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = F.dropout(self.q(x), 0.5, training=True)
        k = F.linear(x, F.dropout(self.k.weight, 0.5, training=True), self.k.bias)
        return q, k, k


class OfTwoOrders(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(WIDTH, WIDTH) / 11)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k = (x.flatten(0, -2) @ self.w).view_as(x)
        return self.q(x), k, k


class OfTwoInputs(Attention):
    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k = self.k(x * 2.0)
        return self.q(x), k, k


class Odd(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Linear(width, 64, dtype=BF16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.a(x), -1) + F.softmax(self.b(x), -1)
