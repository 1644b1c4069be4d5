"""RoPE behind a Linear: which spellings are an epilogue, and which are none."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from epilogues import CHANCE, error
from graphs import fuse
from small_models import RopeAttention, rotate_half
from torch import Tensor, nn

from fusepass.rewrite import decision

WIDE, HEADS, HEAD = 48, 3, 16  # of a token, heads, columns of each
ROWS = 2, 32
MANY = "RoPE (rotary embedding) reads many elements of the result, an epilogue one at a time"
ORDER = "a result of another order in memory than the Linear's"
Tail = Callable[[Tensor, Tensor, Tensor], Any]


def text(head: int, more: str = "", wide: str = "") -> str:
    return f"v0 = rot{head} mul(mat1{wide}); mul(mat0{wide}) add(v0){more}"


def text_of_part(rot: str, columns: int, more: str = "") -> str:
    return f"v0 = {rot} mul(mat1); mul(mat0) add(v0) where(first{columns}of{HEAD}, _, z){more}"


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epilogues with RoPE on the CPU, to compare what they compute."""
    monkeypatch.setattr(decision, "_HEADS_ON_THE_CPU", None)


# --- spellings ------------------------------------------------------------------------------------


def halves(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return q * cos + rotate_half(q) * sin


def chunked(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = q.chunk(2, dim=-1)
    return torch.mul(q, cos).add(torch.cat([second.neg(), first], dim=3).mul(sin))


def pairs(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return q * cos + torch.stack((-q[..., 1::2], q[..., ::2]), dim=-1).flatten(-2) * sin


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


SPELLINGS: dict[str, tuple[Tail, str]] = {
    "halves": (halves, text(HEAD)),
    "chunked": (chunked, text(HEAD)),
    "pairs": (pairs, text(2)),
    "scaled": (scaled, text(HEAD, " mul(0.25)")),
    "beside": (beside, text(HEAD)),
}


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name: str) -> None:
    """As transformers have them; the tables are the same for the batch, or not."""
    tail, epilogue = SPELLINGS[name]
    dtype = torch.bfloat16 if name in ("halves", "pairs") else torch.float32
    model = Rope(tail, dtype, bias=name != "pairs")
    fused = compare(model, inputs(dtype, batch=1 if name == "halves" else 2))
    assert fused.epilogues == [epilogue] and fused.reasons == []


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize("tail", [in_float32, cast_behind])
def test_what_is_computed_in_float32(tail: Tail) -> None:
    fused = compare(Rope(tail, torch.bfloat16), inputs(torch.bfloat16))
    assert fused.epilogues == [text(HEAD, wide=":f32")]


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize("columns", [4, 8, 12])
@pytest.mark.parametrize("pairs_of_it", [False, True])
def test_a_part_of_each_head(columns: int, pairs_of_it: bool) -> None:
    """As GPT-J has it; the other columns are the Linear's, whatever those beside them are."""
    model = Rope(a_part(columns, pairs_of_it), swap=False, bias=columns == 8)
    x, cos, sin = inputs(torch.float32, batch=2)
    rot = "rot2" if pairs_of_it else f"rot{columns}of{HEAD}"
    assert compare(model, (x, cos, sin)).epilogues == [text_of_part(rot, columns)]
    with torch.no_grad():
        torch._dynamo.reset()
        fused, z = fuse(model), model.linear(x).view(*ROWS, HEADS, HEAD)
        infinite = torch.full_like(cos, math.inf)
        found, eager = fused(x, infinite, sin * math.nan), model(x, infinite, sin * math.nan)
    torch.testing.assert_close(found, eager, equal_nan=True)
    torch.testing.assert_close(found[..., columns:], z[..., columns:])
    assert found[..., :columns].isnan().all()


@pytest.mark.usefixtures("numbers")
def test_heads_in_the_order_of_the_rows() -> None:
    """[B, S, H, D], as GPT-J has it; and tables of no batch, [S, D]."""
    x, cos, sin = inputs(torch.float32)
    assert compare(Rope(halves, swap=False), (x, cos, sin)).epilogues == [text(HEAD)]

    def tail(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return halves(q, cos[0, 0], sin[0, 0])

    assert compare(Rope(tail), (x, cos, sin)).epilogues == [text(HEAD)]


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize("turned", [None, 8, 12])
def test_grouped_heads_of_an_attention(turned: int | None) -> None:
    """Of queries and keys, with the tables computed in the graph; the values are as they were. What
    is joined of parts lies in another order than the Linear's result, and attention takes any."""
    model = RopeAttention(WIDE, 4, 2, HEAD, bias=True, turned=turned)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = model

        def forward(self, x: Tensor, angles: Tensor) -> Any:
            both = torch.cat([angles, angles], -1)
            return self.attention(x, both.cos().to(x.dtype), both.sin().to(x.dtype))

    angles = torch.randn(1, ROWS[1], (turned or HEAD) // 2)
    fused = compare(Whole(), (torch.randn(*ROWS, WIDE), angles))
    wanted = text(HEAD) if turned is None else text_of_part(f"rot{turned}of{HEAD}", turned)
    assert fused.epilogues == [wanted] * 2


@pytest.mark.usefixtures("numbers")
def test_sizes_that_change() -> None:
    """One graph for all batches and rows."""
    model = Rope(halves, bias=False)
    torch._dynamo.reset()
    fused = fuse(model, dynamic=True)
    for batch, rows in ((3, 5), (4, 7)):
        x, cos, sin = (torch.randn(s) for s in ((batch, rows, WIDE), *[(1, rows, HEAD)] * 2))
        with torch.no_grad():
            torch.testing.assert_close(fused(x, cos, sin), model(x, cos, sin))
    assert fused.epilogues == [text(HEAD)]


@pytest.mark.usefixtures("numbers")
def test_not_finite_as_eager() -> None:
    x, cos, sin = inputs(torch.float32)
    x[0, 3, 5], cos[0, 7, 2], sin[0, 9, 12] = math.nan, math.inf, -math.inf
    model = Rope(halves)
    with torch.no_grad():
        fused = fuse(model)
        found, eager = fused(x, cos, sin), model(x, cos, sin)
    assert fused.epilogues == [text(HEAD)]
    torch.testing.assert_close(found, eager, equal_nan=True)


def test_a_graph_before_and_after(numbers: None) -> None:
    """The slices, the negation and the join go; the op reads the tables by rows."""
    fused = compare(Rope(halves, bias=False), inputs(torch.float32))
    (after,) = fused.after
    assert not any(name in after for name in ("cat", "neg", "slice", "aten.add", "aten.mul"))
    (op,) = [line for line in after.splitlines() if "fusepass.gemm" in line]
    assert text(HEAD) in op
    assert after.count("f32[2, 32, 16] = aten.expand") == 2


# --- what is none ---------------------------------------------------------------------------------


def other_sign(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = q.chunk(2, dim=-1)
    return q * cos + torch.cat([second, -first], dim=-1) * sin


def no_halves(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return q * cos + torch.cat([-q[..., 4:], q[..., :4]], dim=-1) * sin


def other_rows(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return q * cos + rotate_half(torch.cat([q[:, :, 1:], q[:, :, :1]], dim=2)) * sin


def a_part(columns: int, pairs_of_it: bool = False) -> Tail:
    def tail(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotary, rest = q[..., :columns], q[..., columns:]
        rope = pairs if pairs_of_it else halves
        return torch.cat([rope(rotary, cos[..., :columns], sin[..., :columns]), rest], dim=-1)

    return tail


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
