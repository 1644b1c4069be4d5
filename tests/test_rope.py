"""RoPE behind a Linear: which spellings are an epilogue; those that are none: test_rope_left.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from graphs import fuse
from rope_models import (
    HEAD,
    HEADS,
    ROWS,
    WIDE,
    Rope,
    Tail,
    a_part,
    beside,
    cast_behind,
    chunked,
    compare,
    halves,
    in_float32,
    inputs,
    numbers,  # noqa: F401  (a fixture)
    pairs,
    scaled,
)
from small_models import RopeAttention
from torch import Tensor, nn


def text(head: int, more: str = "", wide: str = "") -> str:
    return f"v0 = rot{head} mul(mat1{wide}); mul(mat0{wide}) add(v0){more}"


def text_of_part(rot: str, columns: int, more: str = "") -> str:
    return f"v0 = {rot} mul(mat1); mul(mat0) add(v0) where(first{columns}of{HEAD}, _, z){more}"


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


@pytest.mark.usefixtures("numbers")
def test_a_graph_before_and_after() -> None:
    """The slices, the negation and the join go; the op reads the tables by rows."""
    fused = compare(Rope(halves, bias=False), inputs(torch.float32))
    (after,) = fused.after
    assert not any(name in after for name in ("cat", "neg", "slice", "aten.add", "aten.mul"))
    (op,) = [line for line in after.splitlines() if "fusepass.gemm" in line]
    assert text(HEAD) in op
    assert after.count("f32[2, 32, 16] = aten.expand") == 2
