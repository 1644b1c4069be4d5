"""A Linear and RoPE behind it, in the spellings that there are, beside eager's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from epilogues import CHANCE, error
from graphs import fuse
from small_models import rotate_half
from torch import Tensor, nn

from fusepass.rewrite import decision

WIDE, HEADS, HEAD = 48, 3, 16  # of a token, heads, columns of each
ROWS = 2, 32
MANY = "RoPE (rotary embedding) reads many elements of the result, an epilogue one at a time"
ORDER = "a result of another order in memory than the Linear's"
Tail = Callable[[Tensor, Tensor, Tensor], Any]


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epilogues with RoPE on the CPU, to compare what they compute."""
    monkeypatch.setattr(decision, "_HEADS_ON_THE_CPU", None)


def halves(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return q * cos + rotate_half(q) * sin


def chunked(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = q.chunk(2, dim=-1)
    return torch.mul(q, cos).add(torch.cat([second.neg(), first], dim=3).mul(sin))


def pairs(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return q * cos + torch.stack((-q[..., 1::2], q[..., ::2]), dim=-1).flatten(-2) * sin


def a_part(columns: int, pairs_of_it: bool = False) -> Tail:
    def tail(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotary, rest = q[..., :columns], q[..., columns:]
        rope = pairs if pairs_of_it else halves
        return torch.cat([rope(rotary, cos[..., :columns], sin[..., :columns]), rest], dim=-1)

    return tail


def in_float32(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide, cos, sin = q.float(), cos.float(), sin.float()
    return (wide * cos + rotate_half(wide) * sin).to(q.dtype)


def cast_behind(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (q.float() * cos.float() + rotate_half(q).float() * sin.float()).to(q.dtype)


def scaled(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return halves(q, cos, sin) * 0.25


def beside(q: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return halves(q, cos, sin), q, q.sum(-1)


class Rope(nn.Module):
    """``tail`` of a Linear's result as [B, H, S, D], or, without ``swap``, [B, S, H, D]."""

    def __init__(
        self, tail: Tail, dtype: torch.dtype = torch.float32, swap: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDE, HEADS * HEAD, bias=bias, dtype=dtype)
        self.tail, self.swap = tail, swap

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        q = self.linear(x).view(*x.shape[:-1], -1, HEAD)
        at = 1 if self.swap else 2
        return self.tail(
            q.transpose(1, 2) if self.swap else q, cos.unsqueeze(at), sin.unsqueeze(at)
        )


def inputs(dtype: torch.dtype, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """x, cosines and sines, [batch, S, D]."""
    both = torch.randn(2, batch, ROWS[1], HEAD).to(dtype)
    return torch.randn(*ROWS, WIDE).to(dtype), both[0], both[1]


def compare(model: nn.Module, args: tuple[Tensor, ...], **kwargs: Any) -> Any:
    """What the pass made of ``model``, whose results are no less exact than eager's and alike."""
    torch._dynamo.reset()
    with torch.no_grad():
        fused = fuse(model, **kwargs)
        found, eager = fused(*args), model(*args)
        exact = copy.deepcopy(model).double()(*(a.double() for a in args))
    if isinstance(found, Tensor):
        found, eager, exact = (found,), (eager,), (exact,)
    for ours, theirs, right in zip(found, eager, exact, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert ours.stride() == theirs.stride()
        assert error(ours, right) <= error(theirs, right) + CHANCE[ours.dtype]
    return fused
