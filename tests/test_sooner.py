"""Weight gradients that take much memory run before the next layer's gradient is written."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from small_models import QUICK, UNCACHED
from torch import Tensor, nn
from torch.fx import Graph, Node

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass.kernels.plan import f32 as plan_f32
from fusepass.kernels.plan import few as plan_few
from fusepass.match.facts import packet
from fusepass.op import presplit
from fusepass.rewrite import decision, sharing, sooner

OPS = (torch.ops.fusepass.linear, torch.ops.fusepass.gemm)
TOKENS, WIDTH = 256, 16


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Graph]]:
    """The graphs as the pass leaves them, as if on Hopper every call took the split kernel."""
    for module in (presplit, decision):
        monkeypatch.setattr(module, "fuses", lambda *args: True)
    monkeypatch.setattr(decision, "has_fused_gemm", lambda *args: True)
    monkeypatch.setattr(plan_few, "choose", lambda *args, **kwargs: None)
    seen: list[Graph] = []

    def spy(graph: Graph) -> None:
        sooner.run_sooner_in(graph)
        graph.lint()
        seen.append(graph)

    monkeypatch.setattr(sharing, "run_sooner_in", spy)
    with torch._inductor.config.patch({**UNCACHED, **QUICK}):
        yield seen


def trained(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    torch.compile(model, backend="fusepass")(x).square().sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model(x).square().sum().backward()
    for ours, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-4)
    return found


def calls(graph: Graph) -> list[tuple[int, ...]]:
    """The shapes of what the products write, in order."""
    return [
        tuple(first.shape)
        for node in graph.nodes
        if packet(node) in OPS
        for first in [node.meta["val"][0] if packet(node) is OPS[1] else node.meta["val"]]
    ]


def mlp() -> nn.Module:
    layers = [m for _ in range(4) for m in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("much", [True, False])
def test_each_layers_weight_gradient_comes_first(
    much: bool, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 4 * TOKENS * 2 * WIDTH - 1 if much else 2**30
    monkeypatch.setattr(plan_f32, "_MOST_PIECES", limit)
    torch.manual_seed(0)
    trained(mlp(), torch.randn(TOKENS, WIDTH))
    backward = calls(graphs[-1])
    of_weight, of_x = (WIDTH, WIDTH), (TOKENS, WIDTH)
    assert backward.count(of_weight) == 4 and backward.count(of_x) == 3
    pairs = [of_weight, of_x] if much else [of_x, of_weight]
    assert backward[:6] == 3 * pairs


def example() -> tuple[Graph, dict[str, Node]]:
    """g = a + b; h = g * 2, larger than the product; z = product of g^T and a^T."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def f(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        g = a + b
        h = g * 2
        z = torch.ops.fusepass.linear(g.t(), a.t(), None, "", [])
        return h, z

    a, b = torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, WIDTH)
    graph = make_fx(f, tracing_mode="fake")(a, b).graph
    return graph, {node.name: node for node in graph.nodes}


def order(graph: Graph) -> list[str]:
    return [n.name for n in graph.nodes if packet(n) in (OPS[0], torch.ops.aten.mul)]


@pytest.mark.parametrize("why", ["", "small pieces", "a small matrix", "what is written in place"])
def test_it_moves_only_past_larger_results(
    why: str, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_f32, "_MOST_PIECES", 2**30 if why == "small pieces" else 0)
    graph, named = example()
    product = next(n for n in graph.nodes if packet(n) is OPS[0])
    if why == "a small matrix":
        named["mul"].meta["val"] = named["mul"].meta["val"][:1]
    if why == "what is written in place":
        with graph.inserting_after(named["mul"]):
            graph.call_function(torch.ops.aten.copy_.default, (named["a_1"], named["mul"]))
    sooner.run_sooner_in(graph)
    graph.lint()
    moved = [product.name, "mul"]
    assert order(graph) == (moved[::-1] if why else moved)
