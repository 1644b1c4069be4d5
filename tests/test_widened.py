"""Products of batches widened from 16 bits: which are sites, which are left, and their numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import graphs
import pytest
import torch
import torch.nn.functional as F
from epilogues import CHANCE, error
from graphs import Fused, fuse
from torch import Tensor
from torch._functorch import partitioners
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusepass.match.followers import ATTENTION

BF16, F16 = torch.bfloat16, torch.float16
# Batch, heads, tokens, width: 2^20 elements of scores.
B, H, S, D = 16, 16, 64, 64


@pytest.fixture(autouse=True)
def highest() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def heads(hidden: Tensor) -> list[Tensor]:
    """q, k and v as a model has them: [B, H, S, D] in rows of all heads."""
    parts = hidden.chunk(3, -1)
    return [t.view(*t.shape[:2], H, -1).transpose(1, 2) for t in parts]


def attention(hidden: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        out = F.scaled_dot_product_attention(*heads(hidden), attn_mask=mask, **kwargs)
    return out.transpose(1, 2).flatten(2)


def tokens(batch: int = B, width: int = D, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(batch, S, 3 * H * width, dtype=dtype)


def compiled(model: Callable[..., Any], *args: Tensor, **kwargs: Any) -> Fused:
    """As on an H200, run once without gradients; it computes what it did."""
    fused = fuse(model, **{"hopper": True, **kwargs})
    with torch.no_grad():
        torch.testing.assert_close(fused(*args), model(*args), rtol=2e-2, atol=1e-3)
    return fused


def test_the_scores_of_an_attention_are_a_site() -> None:
    fused = compiled(attention, tokens())
    (site,), (miss,) = fused.report.sites, fused.report.misses
    assert site.title == "matmul" and site.epilogue == "" and not site.backward
    assert site.shape == "float32 [256, 64, 64] x [256, 64, 64]"
    assert site.flops == 2 * 256 * 64 * 64 * 64 and miss.flops == site.flops
    assert "widened from bfloat16" in str(site) and "in attention: out = F.scaled" in str(site)
    assert miss.reason == ATTENTION
    assert len(fused.report.gemms) == 1 and fused.report.fused == ()
    (call,) = (line for line in fused.after[0].splitlines() if "bmm_widened(" in line)
    assert call.startswith("bmm_widened_default: f32[16, 16, 64, 64] = ")
    # The heads are read where they lie: q and k are neither widened nor copied.
    assert fused.before[0].count("f32[16, 16, 64, 64] = prims.convert_element_type") == 3
    assert fused.after[0].count("f32[16, 16, 64, 64] = prims.convert_element_type") == 1


def test_numbers_are_eagers() -> None:
    hidden, mask = tokens(), torch.randn(B, 1, 1, S).expand(B, 1, S, S).to(BF16)
    fused = compiled(attention, hidden, mask)
    assert len(fused.report.sites) == 1
    exact = attention(hidden.double(), mask.double())
    with torch.no_grad():
        assert (
            error(fused(hidden, mask), exact)
            <= error(attention(hidden, mask), exact) + (CHANCE[BF16])
        )


def test_in_training_the_gradient_of_the_probabilities_is_one_too() -> None:
    hidden = tokens().requires_grad_()
    fused = fuse(attention, hopper=True)
    grads = []
    for model in (fused, attention):
        out = model(hidden)
        grads += torch.autograd.grad(out.float().square().sum(), hidden)
    exact = hidden.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(attention(exact).square().sum(), exact)
    ours, theirs = (error(grad, wanted) for grad in grads)
    assert ours <= theirs + CHANCE[BF16]
    sites = [(s.title, s.shape, s.backward) for s in fused.report.sites]
    shape = "float32 [256, 64, 64] x [256, 64, 64]"
    assert sites == [("matmul", shape, False), ("gradient", shape, True)]
    assert len(fused.report.misses) == 4


def test_linears_in_front_are_told_where_their_results_go() -> None:
    """In training, too, where the backward alone reads q and k in float32."""
    linears = [torch.nn.Linear(64, H * D, dtype=BF16) for _ in range(3)]

    def model(x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            q, k, v = (linear(x).view(B, S, H, D).transpose(1, 2) for linear in linears)
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    fused = fuse(model, hopper=True)
    fused(torch.randn(B, S, 64, dtype=BF16))
    assert [(s.kind, s.follows) for s in fused.report.sites] == [
        ("matmul", None),
        ("gradient", None),
        *[("linear", None)] * 3,
    ]


def test_batch_and_length_may_be_dynamic() -> None:
    fused = fuse(attention, hopper=True)
    for requires_grad in (False, True):
        hidden = tokens().requires_grad_(requires_grad)
        torch._dynamo.mark_dynamic(hidden, [0, 1])
        out = fused(hidden)
        torch.testing.assert_close(out, attention(hidden), rtol=2e-2, atol=1e-3)
        if requires_grad:
            out.float().sum().backward()
    shapes = {s.shape for s in fused.report.sites}
    assert len(fused.report.sites) == 3
    assert re.match(r"float32 \[16\*s\d+, s\d+, 64\] x \[16\*s\d+, 64, s\d+\]", min(shapes))


def test_plain_batches_are_sites() -> None:
    def model(x: Tensor, w: Tensor) -> Tensor:
        return torch.bmm(x.float() * 0.5, w.float().mT)

    fused = compiled(model, torch.randn(64, 128, 64).to(BF16), torch.randn(64, 128, 64).to(BF16))
    assert [s.shape for s in fused.report.sites] == ["float32 [64, 128, 64] x [64, 64, 128]"]
    assert "fusepass.bmm_widened(arg0_1, " in fused.after[0] and ", 0.5)" in fused.after[0]


def left(model: Callable[..., Any], *args: Tensor, **kwargs: Any) -> str:
    """The reason of the only or first product, and that the graph stays what it is."""
    fused = compiled(model, *args, dynamic=False, **kwargs)
    assert fused.report.sites == () and fused.before == fused.after
    return fused.report.misses[0].reason


def test_what_is_left_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert left(attention, tokens(), numerics="bitwise").startswith("bitwise: ")
    assert "torch's is as fast at 240x64x64" in left(attention, tokens(batch=15))
    assert "widened from float16" in left(attention, tokens(dtype=F16))
    unread = "rows are longer than 256 elements or do not start at multiples of 16 bytes"
    assert unread in left(attention, tokens(width=12))
    assert unread in left(attention, tokens(width=264))

    def along(q: Tensor, k: Tensor) -> Tensor:
        return torch.bmm(q.float(), k.float())

    q = torch.randn(64, 128, 128).to(BF16)
    assert unread in left(along, q, q)  # k's rows lie beside one another
    assert "sums of 16 eager hardly rounds" in left(attention, tokens(width=16))
    assert "multiplied by 4" in left(lambda h: attention(h, scale=4.0), tokens())
    torch.set_float32_matmul_precision("high")
    assert "TF32" in left(attention, tokens())


def test_other_devices_are_told_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    assert left(attention, tokens(), hopper=False) == ATTENTION
    monkeypatch.setattr(graphs, "SMS", None)
    assert left(attention, tokens()) == ATTENTION


def test_what_was_not_widened_is_left() -> None:
    assert left(attention, tokens(dtype=torch.float32)) == ATTENTION

    def half(x: Tensor, w: Tensor) -> Tensor:
        return torch.bmm(x.float(), w.float().mT)

    x, w = torch.randn(64, 128, 64), torch.randn(64, 128, 64)
    for pair in ((x.to(BF16), w), (x.to(BF16), w.to(F16))):
        assert "no kernel of fusepass computes" in left(half, *pair)
    narrow = (x.to(BF16), w.to(BF16))
    assert "no kernel" in left(lambda a, b: half(a.float() + 1, b), *narrow)
    assert "no kernel" in left(lambda a, b: half(a.float() * a[:, :1, :1], b), *narrow)


def test_an_attention_that_inductor_may_take_is_left() -> None:
    def spelled_out(hidden: Tensor) -> Tensor:
        q, k, v = (t.float() for t in heads(hidden))
        return torch.softmax(q @ k.mT * D**-0.5, -1) @ v

    assert "Inductor makes one operator of an attention" in left(spelled_out, tokens())


def test_the_partitioner_takes_it_for_a_product() -> None:
    compiled(attention, tokens())
    types = partitioners.get_default_op_list()
    assert torch.ops.fusepass.bmm_widened in types.compute_intensive_ops
