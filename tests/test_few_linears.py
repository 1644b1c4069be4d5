"""Linears of one input, of few rows, as a step of decoding has them: what runs in one launch."""

from __future__ import annotations

import pytest
import torch
from graphs import fuse
from torch import Tensor, nn

linears = torch.ops.fusepass.linears.default


class Step(nn.Module):
    """Queries, keys and values of a token, of Llama-3.2-1B's sizes, and what takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(2048, n, bias=False) for n in (2048, 512, 512))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(*x.shape[:2], -1, 64).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        return nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


@pytest.mark.parametrize("rows", [1, 16])
def test_queries_keys_and_values_of_a_step_run_in_one_launch(rows: int) -> None:
    """Of one row each is a site by itself before; of sixteen q is torch's GEMM until then."""
    model, x = Step().to(torch.bfloat16).eval(), torch.randn(rows, 1, 2048, dtype=torch.bfloat16)
    fused = fuse(model, hopper=True)
    with torch.no_grad():
        found, eager = fused.function(x), model(x)
    torch.testing.assert_close(found, eager, rtol=2e-2, atol=2e-2)
    assert [len(n.args[1]) for n in fused.graphs[0].nodes if n.target is linears] == [3]
    assert [s.kernel for s in fused.report.sites] == [
        "one launch with `k` and `v`",
        "one launch with `q` and `v`",
        "one launch with `q` and `k`",
    ]
    assert not fused.report.misses


def test_more_rows_than_strips_have_are_products_by_themselves() -> None:
    model, x = Step().to(torch.bfloat16).eval(), torch.randn(32, 1, 2048, dtype=torch.bfloat16)
    fused = fuse(model, hopper=True)
    with torch.no_grad():
        fused.function(x)
    assert not [n for n in fused.graphs[0].nodes if n.target is linears]
