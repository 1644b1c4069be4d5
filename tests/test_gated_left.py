"""Two GEMMs of one x that do not become one op, and what else reads them then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gated_models import CUTS, Halves, Separate, calls, silu
from graphs import fuse
from torch import Tensor, nn

F = torch.nn.functional
pytestmark = pytest.mark.usefixtures("pairs_on_the_cpu")


def test_a_gate_that_something_else_reads_is_an_output() -> None:
    class Also(Separate):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            gate = self.gate(x)
            return F.silu(gate) * self.up(x), gate

    model, x = Also(silu), torch.randn(6, 64)
    fused = fuse(model)
    with torch.no_grad():
        for found, eager in zip(fused(x), model(x), strict=True):
            torch.testing.assert_close(found, eager)
    (call,) = calls(fused)
    assert call.args[3] in ("silu mul(z1), z", "silu mul(z1), z1")


def other_x(model: Separate, x: Tensor) -> Tensor:
    return F.silu(model.gate(x)) * model.up(x + 1)


def one_behind_the_other(model: Separate, x: Tensor) -> Tensor:
    gate = model.gate(x)
    return F.silu(gate) * F.linear(x, model.up.weight * gate.mean())


def never_met(model: Separate, x: Tensor) -> Tensor:
    return torch.cat([F.silu(model.gate(x)), model.up(x)], -1)


def met_in_a_softmax(model: Separate, x: Tensor) -> Tensor:
    return F.softmax(model.gate(x), -1) * model.up(x)


def of_other_rows(model: Separate, x: Tensor) -> Tensor:
    return F.silu(model.gate(x)) * model.up(x).flip(0)


@pytest.mark.parametrize(
    "forward", [other_x, one_behind_the_other, never_met, met_in_a_softmax, of_other_rows]
)
def test_what_one_kernel_could_not_compute(forward: Callable[[Separate, Tensor], Tensor]) -> None:
    model, x = Separate(silu), torch.randn(8, 64)
    fused = fuse(lambda x: forward(model, x))
    with torch.no_grad():
        torch.testing.assert_close(fused(x), forward(model, x))
    assert calls(fused) == []


CUTS_LEFT: dict[str, Callable[[Tensor], Any]] = {
    "thirds": lambda y: y.chunk(3, dim=-1)[:2],
    "uneven": lambda y: (y[..., :64], y[..., 64:128]),
    "overlapping": lambda y: (y[..., :100], y[..., 92:]),
    "by turns": lambda y: (y[..., ::2], y[..., 1::2]),
    "rows": lambda y: y.chunk(2, dim=0),
}


@pytest.mark.parametrize("name", CUTS_LEFT)
def test_parts_that_are_no_halves(name: str) -> None:
    model, x = Halves(CUTS_LEFT[name], silu, dtype=torch.bfloat16), torch.randn(256, 64).bfloat16()
    fused = fuse(model, hopper=True)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
    assert calls(fused) == []


def test_the_whole_result_is_read_beside_its_halves() -> None:
    class Whole(Halves):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.both(x)
            return self.join(*self.cut(y)), y

    model = Whole(CUTS["chunk"], silu, dtype=torch.bfloat16)
    x = torch.randn(256, 64, dtype=torch.bfloat16)
    fused = fuse(model, hopper=True)
    with torch.no_grad():
        for found, eager in zip(fused(x), model(x), strict=True):
            torch.testing.assert_close(found, eager)
    assert calls(fused) == []


def test_bitwise_rounds_each_product() -> None:
    model, x = Separate(silu, dtype=torch.bfloat16), torch.randn(8, 64, dtype=torch.bfloat16)
    fused = fuse(model, "bitwise")
    with torch.no_grad():
        assert torch.equal(fused(x), model(x))
    assert calls(fused) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_on_a_gpu_only_where_one_kernel_does_it(dtype: torch.dtype) -> None:
    model, x = Separate(silu, dtype=dtype), torch.randn(128, 64, dtype=dtype)
    fused = fuse(model, hopper=True)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
    assert calls(fused) == []


def test_query_key_and_value_are_no_gate() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(64, 64) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (m(x).view(2, 10, 4, 16).transpose(1, 2) for m in (self.q, self.k, self.v))
            return F.scaled_dot_product_attention(q, k, v)

    model, x = Attention(), torch.randn(2, 10, 64)
    fused = fuse(model)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
    assert calls(fused) == []
