"""Modules whose two GEMMs of one x meet, and what is left of them in a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from graphs import Fused
from torch import Tensor, nn

F = torch.nn.functional
Join = Callable[[Tensor, Tensor], Tensor]


def clamped(gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * (gate * torch.sigmoid(gate * 1.702))


# How gate and up are joined, and the epilogue that it is.
JOINS: dict[str, tuple[Join, str]] = {
    "SwiGLU": (lambda g, u: F.silu(g) * u, "silu mul(z1)"),
    "SwiGLU, up first": (lambda g, u: u * F.silu(g), "silu mul(z1)"),
    "GeGLU": (lambda g, u: F.gelu(g) * u, "gelu mul(z1)"),
    "GeGLU, tanh": (lambda g, u: F.gelu(g, approximate="tanh") * u, "gelu_tanh mul(z1)"),
    "ReGLU": (lambda g, u: F.relu(g) * u, "clamp(0.0, inf) mul(z1)"),
    "GLU": (lambda g, u: torch.sigmoid(g) * u, "sigmoid mul(z1)"),
    "clamped": (
        clamped,
        "v0 = clamp(-inf, 7.0) quick_gelu; z1 clamp(-7.0, 7.0) add(1.0) mul(v0)",
    ),
    "bilinear": (lambda g, u: g * u, "mul(z1)"),
    "a sum": (lambda g, u: torch.tanh(g) + u, "tanh add(z1)"),
}


class Separate(nn.Module):
    """Gate and up as two parameters; more of them in ``others``, which read the same x."""

    def __init__(self, join: Join, bias: tuple[bool, bool] = (False, False), **kwargs: Any) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 96, bias=bias[0], **kwargs)
        self.up = nn.Linear(64, 96, bias=bias[1], **kwargs)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.gate(x), self.up(x))


class Halves(nn.Module):
    """Gate and up as the halves of one parameter, in the order of ``cut``'s results."""

    def __init__(self, cut: Callable[[Tensor], Any], join: Join, **kwargs: Any) -> None:
        super().__init__()
        self.both = nn.Linear(64, 192, **kwargs)
        self.cut, self.join = cut, join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(*self.cut(self.both(x)))


def silu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


CUTS: dict[str, Callable[[Tensor], Any]] = {
    "chunk": lambda y: y.chunk(2, dim=-1),
    "chunk, up first": lambda y: y.chunk(2, dim=-1)[::-1],
    "split": lambda y: y.split(96, dim=-1),
    "split by sizes": lambda y: y.split([96, 96], dim=-1),
    "slices": lambda y: (y[..., :96], y[..., 96:]),
    "slices, up first": lambda y: (y[..., 96:], y[..., :96]),
    "tensor_split": lambda y: y.tensor_split(2, dim=-1),
    "narrow": lambda y: (y.narrow(-1, 0, 96), y.narrow(-1, 96, 96)),
}
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def calls(fused: Fused) -> list[torch.fx.Node]:
    """Of the op, with two weights."""
    targets = (torch.ops.fusepass.gemm.default, torch.ops.fusepass.gemm.constant)
    every = [n for g in fused.graphs for n in g.nodes if n.target in targets]
    return [n for n in every if len(n.args[1]) == 2]


def products(fused: Fused) -> int:
    """How many of torch's GEMMs are left in the graphs."""
    kinds = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return sum(n.target in kinds for g in fused.graphs for n in g.nodes)
