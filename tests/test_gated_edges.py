"""Two GEMMs that meet, where one is not a Linear's, where nodes stand late, and among many."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import Fused, fuse
from torch import Tensor, nn

from fusepass.match import gated

M, K, N = 256, 64, 128
Model = Callable[[Tensor, "Weights"], Tensor]


class Weights(nn.Module):
    """Two weights, one stored [K, N], and what is added to their products."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"w": (K, N), "v": (N, K), "bias": (N,), "matrix": (M, N), "both": (2 * N, K)}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.randn(shape, dtype=torch.bfloat16) / 8)


def compare(model: Model, sites: int) -> Fused:
    """Asserts the numbers, where they lie, and how many sites read two products."""
    weights, x = Weights(), torch.randn(M, K, dtype=torch.bfloat16)
    fused = fuse(lambda x: model(x, weights), hopper=True)
    with torch.no_grad():
        torch.manual_seed(3)
        found = fused(x)
        torch.manual_seed(3)
        eager = model(x, weights)
    torch.testing.assert_close(found, eager, rtol=2e-2, atol=2e-2)
    assert [t.stride() for t in _all(found)] == [t.stride() for t in _all(eager)]
    assert fused.epilogues.count("silu mul(z1)") == 2 * sites
    return fused


def _all(result: object) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]  # type: ignore[list-item]


def bias_of_the_other(x: Tensor, m: Weights) -> Tensor:
    gate, up = x @ m.w, F.linear(x, m.v, m.bias)
    return F.silu(gate + up[0]) * up


def weight_drawn_at_random(x: Tensor, m: Weights) -> Tensor:
    gate = x @ m.w
    noise = torch.rand(M, N).bfloat16()
    up = x @ (m.w * (torch.rand(K, N) > 0.5))
    return F.silu(gate) * up + noise


NO_LINEARS: dict[str, Model] = {
    "alpha": lambda x, m: F.silu(x @ m.w) * torch.addmm(m.bias, x, m.v.t(), alpha=2),
    "beta": lambda x, m: F.silu(x @ m.w) * torch.addmm(m.bias, x, m.v.t(), beta=2),
    "a matrix added": lambda x, m: F.silu(x @ m.w) * torch.addmm(m.matrix, x, m.v.t()),
    "one number added": lambda x, m: F.silu(x @ m.w) * torch.addmm(m.bias[:1], x, m.v.t()),
    "a bias of the other's result": bias_of_the_other,
    "a weight drawn at random": weight_drawn_at_random,
}


@pytest.mark.parametrize("name", NO_LINEARS)
def test_what_is_no_second_linear(name: str) -> None:
    compare(NO_LINEARS[name], 0)


def late_bias(x: Tensor, m: Weights) -> Tensor:
    gate, up = x @ m.w, F.linear(x, m.v, m.bias)
    return F.silu(gate + m.bias.exp()) * up


def late_weight(x: Tensor, m: Weights) -> Tensor:
    up = x @ m.w
    return up * F.silu(F.linear(x, m.v * 2))


@pytest.mark.parametrize("model", [late_bias, late_weight])
def test_what_is_computed_between_them_is_moved_before_both(model: Model) -> None:
    compare(model, 1)


def test_half_a_result_that_is_returned_is_a_view() -> None:
    def model(x: Tensor, m: Weights) -> tuple[Tensor, Tensor]:
        gate, up = F.linear(x, m.both).chunk(2, -1)
        return F.silu(gate) * up, gate

    compare(model, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("up_first", [False, True])
def test_under_autocast_each_product_has_a_cast_of_its_own(up_first: bool, grad: bool) -> None:
    gate, up, x = nn.Linear(K, N), nn.Linear(K, N), torch.randn(M, K)

    def model(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            if up_first:
                return up(x) * F.silu(gate(x))
            return F.silu(gate(x)) * up(x)

    fused = fuse(model, hopper=True)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(fused(x), model(x), rtol=2e-2, atol=2e-2)
    assert fused.epilogues[:2] == ["silu mul(z1)"] * 2


def test_many_products_of_one_x_are_not_tried_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, count = [], 24
    match = gated.match
    monkeypatch.setattr(gated, "match", lambda *args: tried.append(1) or match(*args))
    weights, x = [torch.randn(N, K).bfloat16() for _ in range(count)], torch.randn(M, K).bfloat16()

    def heads(x: Tensor) -> list[Tensor]:
        return [F.gelu(F.linear(x, w)).sum(0) for w in weights]

    def summed(x: Tensor) -> Tensor:
        return sum(F.linear(x, w) for w in weights)  # type: ignore[return-value]

    with torch.no_grad():
        fuse(heads, hopper=True)(x)
        assert tried == []
        fuse(summed, hopper=True)(x)
    assert len(tried) <= count
