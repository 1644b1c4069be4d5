"""What matching and validating cost: linear in the layers, and seconds for two hundred."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx

from fusepass.match import epilogues as match
from fusepass.match import facts, validate
from fusepass.rewrite import graph_pass


def deep(layers: int) -> torch.fx.GraphModule:
    weights, bias = [torch.randn(16, 16) for _ in range(layers)], torch.randn(16)

    def model(x: torch.Tensor) -> torch.Tensor:
        for weight in weights:
            x = F.silu(F.gelu(F.hardtanh(F.linear(x, weight, bias) * 0.5, -2, 2)))
        return x

    trace = make_fx(model, select_decomp_table(), tracing_mode="fake", _allow_non_fake_inputs=True)
    return trace(torch.randn(4, 16))


def looks_at_nodes(layers: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a pass over ``layers`` equal layers asks what a node is."""
    looks: list[torch.fx.Node] = []
    packet = facts.packet
    with monkeypatch.context() as patch:
        patch.setattr(facts, "packet", lambda node: looks.append(node) or packet(node))
        report = graph_pass.run(deep(layers).graph, "accurate")
    assert len(report.sites) == layers
    return len(looks)


def test_cost_grows_linearly_with_the_number_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: equal layers are recognised and validated once."""
    for cached in (match._canonical, validate.validate, validate.validate_arithmetic):
        cached.cache_clear()
    few, many = (looks_at_nodes(layers, monkeypatch) for layers in (25, 100))
    assert many <= 4.1 * few
    assert validate.validate.cache_info().misses == 1
    assert match._canonical.cache_info().misses == 1


def test_two_hundred_layers_in_two_seconds() -> None:
    module = deep(200)
    start = time.process_time()
    report = graph_pass.run(module.graph, "accurate")
    assert time.process_time() - start < 2 and len(report.sites) == 200
