"""What a training step saves and computes again is the same with our products as with torch's."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any
from unittest import mock

import functorch.compile
import graphs
import pytest
import torch
from graphs import Fused, fuse
from small_models import EncoderLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusepass.kernels import library
from fusepass.report import Report
from fusepass.rewrite import graph_pass

_GEMMS = ("aten.mm", "aten.addmm", "fusepass.linear")


class Stack(nn.Module):
    """Two transformer layers, checkpointed or not."""

    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(64, 2) for _ in range(2))
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
        return x


def _plan(saved: list[Any], backward: torch.fx.Graph) -> tuple[Counter[Any], Counter[str]]:
    """What is saved, a transpose being what it is the transpose of, and what the backward runs."""
    values = [n.meta["val"] for n in saved if isinstance(n, torch.fx.Node)]
    kept = Counter(
        (v.dtype, *sorted(_size(size) for size in v.shape)) for v in values if isinstance(v, Tensor)
    )
    names = [str(n.target) for n in backward.nodes if n.op == "call_function"]
    names = ["GEMM" if n.startswith(_GEMMS) else n for n in names]
    views = ("aten.permute", "aten.view", "<built-in function getitem>")
    return kept, Counter(n for n in names if not n.startswith(views))


def _size(size: Any) -> str:
    """A size, or that it is none: symbols, as of a generator's state, have names by chance."""
    return str(size) if isinstance(size, int) else "symbol"


def step(checkpointed: bool, ours: bool) -> tuple[Counter[Any], Counter[str], Fused, Tensor]:
    """One training step; with ``ours`` every product is a site without an epilogue."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, x = Stack(checkpointed), torch.randn(2, 32, 64, requires_grad=True)
    parts: list[Any] = []

    def partition(*args: Any, **kwargs: Any) -> Any:
        parts.extend(functorch.compile.min_cut_rematerialization_partition(*args, **kwargs))
        return tuple(parts)

    with mock.patch.object(graphs, "min_cut_rematerialization_partition", partition):
        fused = fuse(model, hopper=True, dynamic=False)
        with mock.patch.object(graphs, "run", graphs.run if ours else lambda *_: Report()):
            fused(x).square().sum().backward()
    forward, backward = parts
    (outputs,) = forward.graph.output_node().args
    kept, run = _plan(outputs[1:], backward.graph)
    return kept, run, fused, x.grad


@functools.cache
def torchs_own(
    checkpointed: bool, budget: float = 1.0
) -> tuple[Counter[Any], Counter[str], Tensor]:
    """The same step with torch's products."""
    with torch._functorch.config.patch(activation_memory_budget=budget):
        kept, run, _, gradient = step(checkpointed, ours=False)
    return kept, run, gradient


@pytest.mark.sampled(2)  # each budget, and both ways
@pytest.mark.parametrize(
    ("budget", "checkpointed"),
    [(b, c) for i, b in enumerate((1.0, 0.7, 0.3, 0.0)) for c in ((i % 2 == 0), (i % 2 == 1))],
)
def test_products_are_saved_and_computed_again_as_torchs(
    checkpointed: bool, budget: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "chosen", lambda *problem: True)
    monkeypatch.setattr(graph_pass, "objection", lambda *_: "left")  # products alone
    kept, run, expected = torchs_own(checkpointed, budget)
    with torch._functorch.config.patch(activation_memory_budget=budget):
        kept_by_ours, run_by_ours, fused, found = step(checkpointed, ours=True)
    assert (len(fused.report.gemms), fused.report.fused) == (24, ())
    assert kept_by_ours == kept and run_by_ours == run
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_with_epilogues_no_more_is_saved_and_no_product_computed_again(
    checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "chosen", lambda *problem: True)
    kept, run, _ = torchs_own(checkpointed)
    kept_by_ours, run_by_ours, fused, _ = step(checkpointed, ours=True)
    assert (len(fused.report.gemms), len(fused.report.fused)) == (22, 2)
    assert kept_by_ours == kept and run_by_ours["GEMM"] == run["GEMM"]


def test_a_budget_makes_a_difference() -> None:
    """The counts above tell budgets apart, or the tests before would prove nothing."""
    counts = [torchs_own(False, budget)[1]["GEMM"] for budget in (1.0, 0.3, 0.0)]
    assert counts == sorted(set(counts))
