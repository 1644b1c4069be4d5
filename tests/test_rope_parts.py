"""RoPE behind one weight for queries, keys and values, and of a part of a head: where it is one
kernel on a GPU, and what the op is given there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from epilogues import CHANCE, error
from graphs import Fused, fuse
from small_models import RopeAttention, rotate_half, tables
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from fusepass.kernels.plan import sm90 as plan
from fusepass.kernels.plan.demand import Demand
from fusepass.rewrite import decision, parted

F = nn.functional
Apart = Callable[[Tensor, int], Any]


def rope(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return q * cos + rotate_half(q) * sin


# --- one weight -----------------------------------------------------------------------------------


def chunked(z: Tensor, head: int) -> Any:
    return (t.unflatten(-1, (-1, head)).transpose(1, 2) for t in z.chunk(3, -1))


def sliced(z: Tensor, head: int) -> Any:
    n = z.shape[-1] // 3
    parts = (z[..., :n], z[..., n : 2 * n], z[..., 2 * n :])
    return (t.view(*z.shape[:-1], -1, head).transpose(1, 2) for t in parts)


def unbound(z: Tensor, head: int) -> Any:
    return (t.transpose(1, 2) for t in z.unflatten(-1, (3, -1, head)).unbind(-3))


def selected(z: Tensor, head: int) -> Any:
    heads = z.unflatten(-1, (3, -1, head)).permute(2, 0, 3, 1, 4)
    return heads[0], heads[1], heads[2]


def interleaved(z: Tensor, head: int) -> Any:
    """As GPT-NeoX has it, each head's three beside one another."""
    return (t.transpose(1, 2) for t in z.unflatten(-1, (-1, 3 * head)).chunk(3, -1))


class Packed(nn.Module):
    """``tail`` of what ``apart`` makes of one Linear."""

    def __init__(self, apart: Apart, width: int, head: int, dtype: torch.dtype, bias: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=bias, dtype=dtype)
        self.apart, self.head = apart, head

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        q, k, v = self.apart(self.qkv(x), self.head)
        out = F.scaled_dot_product_attention(rope(q, cos, sin), rope(k, cos, sin), v)
        return out.transpose(1, 2).flatten(-2)


class Unrotated(Packed):
    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        q, k, v = self.apart(self.qkv(x), self.head)
        return F.scaled_dot_product_attention(q, k, v)


class Returned(Packed):
    """Values that are kept for a next step."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        q, k, v = self.apart(self.qkv(x), self.head)
        return F.scaled_dot_product_attention(rope(q, cos, sin), rope(k, cos, sin), v), v


class UsedWhole(Packed):
    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        z = self.qkv(x)
        q, k, v = self.apart(z, self.head)
        out = F.scaled_dot_product_attention(rope(q, cos, sin), rope(k, cos, sin), v)
        return out, z.sum(-1)


class WithNone(Packed):
    """No column at all is used besides."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        z = self.qkv(x)
        q, k, v = self.apart(z, self.head)
        out = F.scaled_dot_product_attention(rope(q, cos, sin), rope(k, cos, sin), v)
        return out, z[..., :0].sum()


def on_a_gpu(model: nn.Module, batch: int, rows: int, width: int, head: int) -> Fused:
    """What the pass makes of it on an H200."""
    x = torch.randn(batch, rows, width, dtype=torch.bfloat16)
    cos, sin = (t.unsqueeze(1).bfloat16() for t in tables(rows, head))
    torch._dynamo.reset()
    fused = fuse(model, hopper=True)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        fused(x, cos, sin)
    return fused


ROTATED = "v0 = rot64 mul(mat1); mul(mat0) add(v0)"


@pytest.mark.parametrize("apart", [chunked, sliced, unbound])
def test_a_product_for_each(apart: Apart) -> None:
    """Of the weight's rows as they lie, and as much of the bias; of values the product alone."""
    fused = on_a_gpu(Packed(apart, 768, 64, torch.bfloat16, True), 8, 2048, 768, 64)
    assert [e for e in fused.epilogues if e] == [ROTATED] * 2
    assert {(s.n, s.node) for s in fused.report.sites} | {
        (m.shape.split(", ")[-1].rstrip("]"), m.gemm) for m in fused.report.misses
    } == {("768", "addmm")}
    (after,) = fused.after
    assert "2304" in after and "cat" not in after.split("fusepass.gemm")[-1]


@pytest.mark.parametrize(
    ("model", "apart"),
    [
        (Packed, interleaved),
        (Packed, selected),  # behind a permutation
        (Unrotated, chunked),
        (Returned, chunked),
        (UsedWhole, chunked),
        (WithNone, sliced),
    ],
)
def test_what_stays_whole(model: type[Packed], apart: Apart) -> None:
    whole = on_a_gpu(model(apart, 768, 64, torch.bfloat16, False), 8, 2048, 768, 64)
    assert not any("rot" in e for e in whole.epilogues)
    sizes = [s.n for s in whole.report.sites] + [m.shape for m in whole.report.misses]
    assert len(sizes) == 1 and "2304" in sizes[0]


def test_what_does_not_pay_stays_whole() -> None:
    """Few rows: no kernel of heads is as fast as two."""
    whole = on_a_gpu(Packed(chunked, 768, 64, torch.bfloat16, False), 1, 64, 768, 64)
    assert not any("rot" in e for e in whole.epilogues)


@pytest.mark.parametrize("apart", [chunked, sliced, unbound])
@pytest.mark.parametrize("bias", [False, True])
def test_numbers(apart: Apart, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No less exact than eager, and as it lies there."""
    monkeypatch.setattr(decision, "_HEADS_ON_THE_CPU", None)
    monkeypatch.setattr(parted, "has_kernel", lambda anchor: True)
    monkeypatch.setattr(parted, "parts_pay", lambda *args: True)
    model, exact = (Packed(apart, 48, 16, t, bias) for t in (torch.float32, torch.float64))
    exact.load_state_dict(model.state_dict())
    x, cos, sin = torch.randn(2, 32, 48), torch.randn(1, 32, 16), torch.randn(1, 32, 16)
    torch._dynamo.reset()
    fused = fuse(model)
    with torch.no_grad():
        found, eager = fused(x, cos, sin), model(x, cos, sin)
        wanted = exact(*(t.double() for t in (x, cos, sin)))
    assert [e for e in fused.epilogues if e] == [ROTATED.replace("64", "16")] * 2
    assert found.stride() == eager.stride()
    assert error(found, wanted) <= error(eager, wanted) + CHANCE[torch.float32]


# --- a part of a head -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "turned", "text", "columns"),
    [
        (128, 64, "rot64of128", 64),
        (64, 32, "rot32of64", 64),
        (80, 40, "rot40of80", 320),
        (80, 20, "rot20of80", 320),
        (96, 96, "rot96 ", 192),
    ],
)
def test_tables_of_whole_boxes(width: int, turned: int, text: str, columns: int) -> None:
    """As wide as the kernel reads them: of a part that is repeated in a head, or of heads."""
    model = RopeAttention(2048, 32, 32, width, turned=None if turned == width else turned)
    x = torch.randn(4, 2048, 2048, dtype=torch.bfloat16)
    cos, sin = (t.bfloat16() for t in tables(2048, turned))
    torch._dynamo.reset()
    fused = fuse(model.bfloat16(), hopper=True)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        fused(x, cos, sin)
    assert sum(text in e for e in fused.epilogues) == 2, fused.reasons
    (after,) = fused.after
    assert after.count(f"bf16[4, 2048, {columns}] = aten.expand") == 4


def test_widths_of_which_there_are_no_whole_tables() -> None:
    """Five heads of 80 columns are no multiple of 64."""
    model = RopeAttention(400, 5, 5, 80, turned=40).bfloat16()
    x = torch.randn(4, 2048, 400, dtype=torch.bfloat16)
    cos, sin = (t.bfloat16() for t in tables(2048, 40))
    torch._dynamo.reset()
    fused = fuse(model, hopper=True)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        fused(x, cos, sin)
    assert not any("rot" in e for e in fused.epilogues)


@pytest.mark.parametrize(
    ("n", "text", "config"),
    [
        (2560, "rot40of80 first40of80", "128x160 pingpong cluster2 stages4 group12"),
        (2560, "rot20of80 first20of80", "128x160 pingpong cluster2 stages4 group12"),
        (3072, "rot96", "128x192 pingpong cluster2 stages4 group14"),
        (6144, "rot64of128 first64of128", "128x128 pingpong cluster2 stages5 group12"),
        (4096, "rot2 first64of256", "128x256 cooperative cluster2 stages3 group16"),
    ],
)
def test_what_was_measured_is_chosen(n: int, text: str, config: str) -> None:
    """Of 8192 rows, benchmarks/NOTES.md; all were faster than two kernels."""
    rot, *first = text.split()
    part = f" where({first[0]}, _, z)" if first else ""
    program = plan.Epilogue.parse(f"v0 = {rot} mul(mat1); mul(mat0) add(v0){part}")
    known = Demand.of(program, plan.ir_dtype(plan.BFLOAT16))
    assert isinstance(known, Demand)
    assert str(plan.choose(8192, n, n, False, known)) == config
