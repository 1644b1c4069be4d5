"""Problems of KernelBench's level 2: a Linear, what follows it, and the sizes that are published.

Norms are in evaluation, with statistics that do something. Numbers are the problems' own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tail = Callable[[Tensor, "Model", Tensor], Tensor]  # of the Linear's result, the model, its input


@dataclass(frozen=True)
class Problem:
    """One of them.

    Attributes:
        text: what follows the Linear.
        sizes: rows, and the columns of x and of the result.
        tail: what follows it.
        vector: of how many numbers a parameter beside the weight has, if there is one.
        norm: makes the norm, if there is one.
        bias: whether the Linear has one.
        columns: of a second Linear's result; 0: there is none.
    """

    text: str
    sizes: tuple[int, int, int]
    tail: Tail
    vector: int = 0
    norm: Callable[[int], nn.Module] | None = None
    bias: bool = True
    columns: int = 0

    def make(self, sizes: tuple[int, int, int] | None = None) -> tuple[Model, Tensor]:
        """The model in evaluation, and an input, of ``sizes`` or its own, on the default device."""
        rows, k, n = sizes or self.sizes
        return Model(self, k, n).eval(), torch.rand(rows, k)


class Model(nn.Module):
    """A Linear and what follows it."""

    def __init__(self, problem: Problem, k: int, n: int) -> None:
        super().__init__()
        self.gemm, self.tail = nn.Linear(k, n, bias=problem.bias), problem.tail
        if problem.vector:
            self.vector = nn.Parameter(torch.randn(n if problem.vector > 1 else 1))
        if problem.norm:
            self.norm = problem.norm(n)
        if problem.columns:
            self.second = nn.Linear(n, min(problem.columns, n))
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.running_mean, norm.running_var = torch.randn(n), torch.rand(n) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.gemm(x), self, x)


def _swish(z: Tensor) -> Tensor:
    return z * torch.sigmoid(z)


def _clamp_logsumexp_mish(z: Tensor, model: Any, x: Tensor) -> Tensor:
    z = z * 2.0
    z = torch.logsumexp((z + z).clamp(-10.0, 10.0), dim=1, keepdim=True)
    return z * F.mish(z)


def _mean_gelu_residual(z: Tensor, model: Any, x: Tensor) -> Tensor:
    mean = (z - model.vector).mean(dim=1, keepdim=True)
    return F.gelu(torch.logsumexp(mean, dim=1, keepdim=True)) + x.clone().detach()


def _swish_clamp_tanh(z: Tensor, model: Any, x: Tensor) -> Tensor:
    return (_swish(z) / 2.0).clamp(-1.0, 1.0).tanh().clamp(-1.0, 1.0)


def _swish_tanh_gelu(z: Tensor, model: Any, x: Tensor) -> Tensor:
    return F.hardtanh(F.gelu(torch.tanh(_swish(z + model.vector))), -1.0, 1.0)


def _groups(count: int) -> Callable[[int], nn.Module]:
    return lambda n: nn.GroupNorm(math.gcd(min(count, n // 4), n), n)


_SQUARE, _TALL = (1024, 8192, 8192), (16384, 4096, 4096)
# Problem 68's constant is a parameter of one element.
PROBLEMS: dict[int, Problem] = {
    9: Problem("subtract, multiply, ReLU", _SQUARE, lambda z, m, x: F.relu((z - 2.0) * 1.5)),
    12: Problem("multiply, LeakyReLU", _SQUARE, lambda z, m, x: F.leaky_relu(z * 2.0, 0.1)),
    22: Problem("scale, add, clamp, LogSumExp, mish", _SQUARE, _clamp_logsumexp_mish),
    29: Problem("mish, mish", _SQUARE, lambda z, m, x: F.mish(F.mish(z))),
    33: Problem("scale, BatchNorm", _SQUARE, lambda z, m, x: m.norm(z * m.vector), 2,
                nn.BatchNorm1d),
    37: Problem("swish, add, GroupNorm", (32768, 1024, 4096),
                lambda z, m, x: m.norm(_swish(z) + m.vector), 2, _groups(64)),
    39: Problem("scale, BatchNorm", _TALL, lambda z, m, x: m.norm(z * m.vector), 2,
                nn.BatchNorm1d),
    40: Problem("scale, add", _TALL, lambda z, m, x: z * 0.5 + z.clone().detach()),
    41: Problem("BatchNorm, GELU, ReLU", _TALL, lambda z, m, x: F.relu(F.gelu(m.norm(z))),
                norm=nn.BatchNorm1d),
    45: Problem("sigmoid, Linear, LogSumExp", (16384, 2048, 4096),
                lambda z, m, x: torch.logsumexp(m.second(torch.sigmoid(z)), dim=1), columns=1024),
    51: Problem("subtract, mean, LogSumExp, GELU, add", (2048, 8192, 8192), _mean_gelu_residual, 2),
    53: Problem("scale, Hardtanh, GELU", (2048, 8192, 8192),
                lambda z, m, x: F.gelu(F.hardtanh(z * 0.5, -2.0, 2.0))),
    59: Problem("swish, scale", (128, 32768, 32768), lambda z, m, x: _swish(z) * 2.0),
    63: Problem("ReLU, divide", _SQUARE, lambda z, m, x: F.relu(z) / 2.0),
    68: Problem("min, subtract", (128, 16384, 16384),
                lambda z, m, x: torch.min(z, m.vector) - m.vector, 1),
    70: Problem("sigmoid, scale, add", _SQUARE, lambda z, m, x: torch.sigmoid(z) * 2.0 + z),
    76: Problem("add, ReLU", _SQUARE, lambda z, m, x: F.relu(z + m.vector), 2, bias=False),
    81: Problem("swish, divide, clamp, tanh, clamp", _SQUARE, _swish_clamp_tanh),
    86: Problem("divide, GELU", _SQUARE, lambda z, m, x: F.gelu(z / 10.0)),
    94: Problem("add, Hardtanh, mish, GroupNorm", _SQUARE,
                lambda z, m, x: m.norm(F.mish(F.hardtanh(z + m.vector))), 2, _groups(256)),
    95: Problem("add, swish, tanh, GELU, Hardtanh", _SQUARE, _swish_tanh_gelu, 2),
    97: Problem("BatchNorm, add, divide, swish", _SQUARE,
                lambda z, m, x: _swish((m.norm(z) + m.vector) / 1.0), 1, nn.BatchNorm1d),
}  # fmt: skip
