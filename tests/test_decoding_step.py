"""One token a sequence: which Linears of a decoder's layer are sites, by the plan of few rows.

The pass is told that it compiles for an H200; the graphs run on the CPU.
"""

from __future__ import annotations

import re

import torch
from graphs import fuse
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, KEYS, HIDDEN, WORDS = 1024, 512, 2048, 2051


def _linear(k: int, n: int) -> nn.Linear:
    return nn.Linear(k, n, bias=False, dtype=torch.bfloat16)


class Llama(nn.Module):
    """A layer and the head; instead of its attention, what is pointwise in it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (_linear(WIDTH, n) for n in (WIDTH, KEYS, KEYS))
        self.o, self.down = _linear(WIDTH, WIDTH), _linear(HIDDEN, WIDTH)
        self.gate, self.up, self.head = (_linear(WIDTH, n) for n in (HIDDEN, HIDDEN, WORDS))

    def norm(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        seen = torch.softmax(self.k(h), -1) * torch.softmax(self.v(h), -1)
        x = x + self.o(torch.softmax(self.q(h), -1) * seen.repeat(1, 1, 2))
        h = self.norm(x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.head(self.norm(x))


def test_every_linear_of_a_row_is_a_site() -> None:
    """The two of a pair as one; residuals are added by the norm behind them, for free."""
    model, x = Llama(), torch.randn(1, 1, WIDTH, dtype=torch.bfloat16)
    with torch.no_grad():
        fused = fuse(model, hopper=True)
        found, wanted = fused(x), model(x)
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
    sites = {str(s.module): (s.epilogue, s.kernel) for s in fused.report.sites}
    pair = dict.fromkeys(("gate", "up"), ("silu mul(z1)", "one kernel"))
    alone = dict.fromkeys(("o", "down", "head"), ("", "one kernel"))
    attention = {name: sites.pop(name) for name in ("q", "k", "v")}
    assert sites == pair | alone and fused.reasons == []
    for name, (epilogue, kernel) in attention.items():
        others = {"q", "k", "v"} - {name}
        assert not epilogue and kernel.startswith("one launch with ")
        assert {*re.findall("`(.)`", kernel)} == others


class Gpt2(nn.Module):
    """The last two products of a layer: weights [K, N], a bias, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        shapes = (WIDTH, HIDDEN), (HIDDEN, WIDTH), (WIDTH, HIDDEN)
        self.weights = nn.ParameterList(torch.randn(s, dtype=torch.bfloat16) / 32 for s in shapes)
        self.biases = nn.ParameterList(torch.randn(s[1], dtype=torch.bfloat16) for s in shapes)

    def forward(self, x: Tensor) -> Tensor:
        up, down, last = (
            lambda x, w=w, b=b: torch.addmm(b, x, w)
            for w, b in zip(self.weights, self.biases, strict=True)
        )
        x = x + down(F.gelu(up(x), approximate="tanh"))
        return last(F.layer_norm(x, (WIDTH,)))


def test_few_columns_of_the_other_order_are_taken() -> None:
    """And more of them only where an epilogue would be a kernel of its own."""
    model, x = Gpt2(), torch.randn(1, WIDTH, dtype=torch.bfloat16)
    with torch.no_grad():
        fused = fuse(model, hopper=True)
        found, wanted = fused(x), model(x)
    torch.testing.assert_close(found, wanted, rtol=5e-2, atol=5e-2)
    sites = [(site.epilogue, site.n, site.kernel) for site in fused.report.sites]
    wanted = [("gelu_tanh", str(HIDDEN), "one kernel"), ("", str(WIDTH), "one kernel")]
    assert sites == wanted  # a residual is added by the norm behind it, for free
    assert fused.reasons == ["a product alone, and torch's GEMM is as fast at 1x2048x1024"]
