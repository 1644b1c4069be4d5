"""What looks like RoPE behind a Linear, and is no epilogue."""

from __future__ import annotations

import pytest
import torch
from graphs import fuse
from rope_models import (
    HEADS,
    MANY,
    ORDER,
    Rope,
    Tail,
    a_part,
    compare,
    halves,
    inputs,
    numbers,  # noqa: F401  (a fixture)
)
from small_models import rotate_half
from torch import Tensor, nn

from fusepass.rewrite import decision


def other_sign(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = q.chunk(2, dim=-1)
    return q * cos + torch.cat([second, -first], dim=-1) * sin


def no_halves(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return q * cos + torch.cat([-q[..., 4:], q[..., :4]], dim=-1) * sin


def other_rows(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return q * cos + rotate_half(torch.cat([q[:, :, 1:], q[:, :, :1]], dim=2)) * sin


def last_part(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.cat([q[..., :8], halves(q[..., 8:], cos[..., 8:], sin[..., 8:])], dim=-1)


def part_without_the_rest(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return halves(q[..., :8], cos[..., :8], sin[..., :8])


def scaled_rest(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotary = halves(q[..., :8], cos[..., :8], sin[..., :8])
    return torch.cat([rotary, q[..., 8:] * 2.0], dim=-1)


def rest_of_another(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotary = halves(q[..., :8], cos[..., :8], sin[..., :8])
    return torch.cat([rotary, (q * 2.0)[..., 8:]], dim=-1)


def returned_attention(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    q = a_part(8)(q, cos, sin)
    return nn.functional.scaled_dot_product_attention(q, q, q)


def of_itself(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return q * q.mean(1, keepdim=True) + rotate_half(q) * sin


def by_head(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return q * cos.expand(-1, HEADS, -1, -1).exp() + rotate_half(q) * sin


def turned_order(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotate_half(q) * sin + q * cos


NONE: dict[str, tuple[Tail, str | None]] = {
    "the other sign": (other_sign, MANY),
    "no halves": (no_halves, MANY),
    "other rows": (other_rows, None),
    "a part that lies as the join does": (a_part(8), ORDER),
    "an attention that lies as the join does": (returned_attention, ORDER),
    "the last part": (last_part, None),
    "a part alone": (part_without_the_rest, None),
    "a rest that is no more what it was": (scaled_rest, None),
    "a rest of something else": (rest_of_another, None),
    "tables of z": (of_itself, None),
    "a table of several heads": (by_head, None),
    "a result that lies as the join does": (turned_order, ORDER),
}


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize("name", NONE)
def test_what_is_none(name: str) -> None:
    tail, reason = NONE[name]
    fused = compare(Rope(tail), inputs(torch.float32, batch=2))
    assert not any("rot" in e for e in fused.epilogues), fused.epilogues
    assert reason is None or fused.reasons == [reason]


@pytest.mark.usefixtures("numbers")
def test_the_second_of_two_is_left() -> None:
    def tail(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return halves(halves(q, cos, sin), cos, sin)

    for epilogue in compare(Rope(tail), inputs(torch.float32, batch=2)).epilogues:
        assert epilogue.count("rot") == 1


@pytest.mark.usefixtures("numbers")
def test_training_is_left() -> None:
    model, args = Rope(halves), inputs(torch.float32)
    torch._dynamo.reset()
    fused = fuse(model)
    fused(*args).sum().backward()
    assert fused.epilogues == [] and fused.reasons == [MANY]


def test_on_the_cpu_it_is_inductors() -> None:
    with torch.no_grad():
        fused = fuse(Rope(halves))
        fused(*inputs(torch.float32))
    assert fused.epilogues == [] and fused.reasons == [decision._HEADS_ON_THE_CPU]
