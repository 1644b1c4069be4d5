"""A matrix that several products read is split once, where they are near each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from small_models import QUICK, UNCACHED
from torch import Tensor, nn
from torch.fx import Graph

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass.kernels.plan import few as plan_few
from fusepass.op import presplit
from fusepass.rewrite import decision, sharing

LINEAR, SPLIT = torch.ops.fusepass.linear, torch.ops.fusepass.split.default
gelu = nn.functional.gelu


@pytest.fixture
def as_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the plan took the split kernel for every call."""
    monkeypatch.setattr(presplit, "fuses", lambda *args: True)
    monkeypatch.setattr(plan_few, "choose", lambda *args, **kwargs: None)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Graph]]:
    """The graphs as the pass leaves them."""
    seen: list[Graph] = []
    share_in = sharing.share_in

    def spy(graph: Graph) -> None:
        share_in(graph)
        graph.lint()
        seen.append(graph)

    monkeypatch.setattr(sharing, "share_in", spy)
    with torch._inductor.config.patch({**UNCACHED, **QUICK}):
        yield seen


def count(graph: Graph, target: object) -> int:
    return len(graph.find_nodes(op="call_function", target=target))


class Projections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 32) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return gelu(self.q(x)), gelu(self.k(x)), gelu(self.v(x))


@torch.no_grad()
def test_three_projections_of_one_x_split_it_once(as_on_hopper: None, graphs: list[Graph]) -> None:
    model, x = Projections(), torch.randn(2, 8, 16)
    torch.testing.assert_close(torch.compile(model, backend="fusepass")(x), model(x))
    (graph,) = graphs
    (split,) = graph.find_nodes(op="call_function", target=SPLIT)
    calls = graph.find_nodes(op="call_function", target=LINEAR.split)
    assert len(calls) == 3 and all(call.args[5:] == (split, None) for call in calls)


@torch.no_grad()
def test_beside_frozen_weights(as_on_hopper: None, graphs: list[Graph]) -> None:
    """Their splits are constants; x is still split once for the three."""
    model, x = Projections().eval(), torch.randn(8, 16)
    frozen = {"freezing": True, "cpp.weight_prepack": False}  # a GPU packs no weight
    with torch._inductor.config.patch(frozen):
        torch.testing.assert_close(torch.compile(model, backend="fusepass")(x), model(x))
    graph = graphs[-1]
    (split,) = graph.find_nodes(op="call_function", target=SPLIT)
    calls = graph.find_nodes(op="call_function", target=LINEAR.split)
    assert len(calls) == 3 and all(call.args[5] is split for call in calls)
    assert all(call.args[6].op == "get_attr" for call in calls)


@torch.no_grad()
def test_one_weight_for_two_inputs_is_split_once(as_on_hopper: None, graphs: list[Graph]) -> None:
    def f(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return gelu(x @ w), gelu(y @ w)

    x, y, w = torch.randn(8, 16), torch.randn(8, 16), torch.randn(16, 32)
    torch.testing.assert_close(torch.compile(f, backend="fusepass")(x, y, w), f(x, y, w))
    (graph,) = graphs
    (split,) = graph.find_nodes(op="call_function", target=SPLIT)
    calls = graph.find_nodes(op="call_function", target=LINEAR.split)
    assert len(calls) == 2 and all(call.args[5:] == (None, split) for call in calls)


@torch.no_grad()
@pytest.mark.parametrize("why", ["cuBLAS", "another x", "another view", "far", "bitwise"])
def test_otherwise_each_product_splits_for_itself(
    why: str, as_on_hopper: None, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "cuBLAS":
        monkeypatch.setattr(presplit, "fuses", lambda *args: False)
    if why == "far":
        monkeypatch.setattr(sharing, "_NEAR", 0)

    def f(x: Tensor, w: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        y = x + 1 if why == "another x" else x[:4] if why == "another view" else x
        return gelu(x @ w), gelu(y @ u)

    x, w, u = torch.randn(8, 16), torch.randn(16, 32), torch.randn(16, 32)
    options = {"fusepass.numerics": "bitwise"} if why == "bitwise" else None
    compiled = torch.compile(f, backend="fusepass", options=options)
    torch.testing.assert_close(compiled(x, w, u), f(x, w, u))
    (graph,) = graphs
    assert count(graph, SPLIT) == count(graph, LINEAR.split) == 0


def test_a_failure_leaves_the_model_running(
    as_on_hopper: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(graph: Graph) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(sharing, "share_in", fail)
    model, x = Projections(), torch.randn(8, 16)
    with torch.no_grad(), torch._inductor.config.patch({**UNCACHED, **QUICK}):
        torch.testing.assert_close(torch.compile(model, backend="fusepass")(x), model(x))
    assert "no split is shared" in caplog.text


def test_gradients_of_three_projections_split_x_once_more(
    as_on_hopper: None, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward are two graphs, each with a split of its own: by rows, by columns."""
    monkeypatch.setattr(decision, "has_fused_gemm", lambda *args: True)
    monkeypatch.setattr(decision, "fuses", lambda *args: True)
    model = Projections()
    monkeypatch.setattr(Projections, "forward", lambda self, x: (self.q(x), self.k(x), self.v(x)))
    x = torch.randn(8, 16, requires_grad=True)

    def train(f: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
        x.grad = None
        model.zero_grad()
        torch.stack(f(x)).square().sum().backward()
        assert x.grad is not None
        return [x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]

    expected = train(model)
    for found, gradient in zip(
        train(torch.compile(model, backend="fusepass")), expected, strict=True
    ):
        torch.testing.assert_close(found, gradient)
    forward, backward = graphs
    (by_rows,) = forward.find_nodes(op="call_function", target=SPLIT)
    assert by_rows.args[0].meta["val"].stride() == (16, 1)
    by_columns = [
        node
        for node in backward.find_nodes(op="call_function", target=SPLIT)
        if node.args[0].meta["val"].shape == (16, 8)
    ]
    assert len(by_columns) == 1 and by_columns[0].args[0].meta["val"].stride() == (1, 16)
    assert sum(by_columns[0] in node.args for node in backward.nodes) == 3
