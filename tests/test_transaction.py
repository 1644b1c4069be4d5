"""Sites are rewritten one by one, each on the graph as it has become; all of them or none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import fuse, text
from small_models import QUICK, compiled
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx.experimental.proxy_tensor import make_fx

from fusepass.report import collect
from fusepass.rewrite import graph_pass
from fusepass.rewrite.transaction import Transaction

aten = torch.ops.aten


class Two(nn.Module):
    """Two Linears of one input, and what ``tail`` makes of both."""

    def __init__(self, tail: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.tail = nn.Linear(24, 24), nn.Linear(24, 24), tail

    def forward(self, x: Tensor) -> Any:
        return self.tail(self.first(x), self.second(x))


def behind(z1: Tensor, z2: Tensor) -> Any:
    h = F.gelu(z1)
    return F.relu(z2 * h.mean()), h


def crosswise(z1: Tensor, z2: Tensor) -> Any:
    return F.relu(z1 * z2.mean()), F.relu(z2 * z1.mean())


def round_about(z1: Tensor, z2: Tensor) -> Any:
    h1 = F.relu(z1 * z2.mean())
    return h1, F.relu(z2 * torch.atan(h1).sum())


# tail -> the epilogues and the misses
DEPENDENT: dict[str, tuple[Callable[..., Any], list[str], int]] = {
    "behind": (behind, ["gelu", "mul($0) clamp(0.0, inf)"], 0),
    "crosswise": (crosswise, ["mul($0) clamp(0.0, inf)"], 1),
    "round about": (round_about, ["mul($0) clamp(0.0, inf)"], 1),
}


@pytest.mark.parametrize("name", DEPENDENT)
@pytest.mark.parametrize("shape", [(6, 24), (2, 3, 24)])
@pytest.mark.parametrize("training", [False, True])
def test_sites_that_depend_on_one_another(
    name: str, shape: tuple[int, ...], training: bool
) -> None:
    tail, epilogues, misses = DEPENDENT[name]
    model, x = Two(tail), torch.randn(shape)
    fused = fuse(model)
    with torch.set_grad_enabled(training):
        found, expected = fused(x), model(x)
        torch.testing.assert_close(found, expected)
    if training:
        ours, theirs = (
            torch.autograd.grad(sum(o.square().sum() for o in outputs), list(model.parameters()))
            for outputs in (found, expected)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert fused.epilogues == epilogues and len(fused.reasons) == misses


def test_an_operand_that_is_the_exit_of_a_site_before() -> None:
    """It is read where that site's result now is. Inductor makes no GEMM of a single element."""
    x, w, v = torch.randn(6, 24), torch.randn(24, 40), torch.randn(24, 1)

    def model(x: Tensor) -> Tensor:
        scale = F.relu(x[:1] @ v)
        return F.relu((x @ w) * scale)

    module = make_fx(model, tracing_mode="fake", _allow_non_fake_inputs=True)(x)
    report = graph_pass.run(module.graph, "accurate")
    module.recompile()
    torch.testing.assert_close(module(x), model(x))
    assert [s.epilogue for s in report.sites] == ["clamp(0.0, inf)", "mul($0) clamp(0.0, inf)"]
    first, second = module.graph.find_nodes(
        op="call_function", target=torch.ops.fusepass.linear.default
    )
    assert second.args[4] == [first]


# --- a failure of ours ---------------------------------------------------------------------------


def _model(x: Tensor, w: Tensor) -> Any:
    z1, z2 = x @ w, x @ w.t()
    h = F.gelu(z1.view(3, 2, 24) * z2.mean())
    return F.relu(z2) + 1, h, F.gelu((h.view(6, 24) @ w) * torch.sin(z1).sum())


def _snapshot(graph: torch.fx.Graph) -> list[Any]:
    return [(n, n.target, n.args, n.kwargs, list(n.users), dict(n.meta)) for n in graph.nodes]


def _failing_at(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` that fails at its ``count``-th call, after it has done its work."""
    calls = []

    def failing(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        calls.append(1)
        if len(calls) == count:
            raise ZeroDivisionError(f"call {count}")
        return result

    return failing


PLACES = [
    *((graph_pass, "match", n) for n in (1, 2, 3)),
    *((graph_pass, "replace", n) for n in (1, 2, 3)),
    (graph_pass, "_site", 2),
    (graph_pass.constant, "use_in", 1),
    (graph_pass.presplit, "use_in", 1),
    (graph_pass, "Graph", 1),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("place", PLACES, ids=lambda p: f"{p[1]} {p[2]}")
@pytest.mark.parametrize("training", [False, True])
def test_after_a_failure_the_graph_is_what_it_was(
    place: tuple[Any, str, int], training: bool, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    module, name, count = place
    monkeypatch.setattr(module, name, _failing_at(count, getattr(module, name)))
    graphs, run = [], graph_pass.run

    def spy(graph: torch.fx.Graph, numerics: str) -> Any:
        before = _snapshot(graph)
        graphs.append(text(graph))
        with pytest.raises(ZeroDivisionError, match=f"call {count}"):
            run(graph, numerics)
        assert _snapshot(graph) == before
        graph.lint()
        raise ZeroDivisionError(f"call {count}")

    monkeypatch.setattr(graph_pass, "run", spy)
    x, w = torch.randn(6, 24), torch.randn(24, 24, requires_grad=training)
    with caplog.at_level(logging.WARNING, "fusepass"), collect() as gathered:
        found = compiled(_model, options=QUICK)(x, w)
    torch.testing.assert_close(found, _model(x, w), rtol=1e-4, atol=1e-4)
    (record,) = (r for r in caplog.records if r.name == "fusepass")  # torch may have its own to say
    assert record.exc_info[0] is ZeroDivisionError
    assert len(graphs) == 1 and "fusepass" not in graphs[0]
    assert counters["fusepass"] == {"fused": 0, "gemms": 0, "missed": 1}
    (miss,) = gathered.report().misses
    assert miss.reason == f"fusepass failed: ZeroDivisionError: call {count}"


def test_a_graph_that_is_broken_behind_us_is_taken_back() -> None:
    """The last look at the whole graph is before anything is erased."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    first = graph.call_function(aten.relu.default, (x,))
    second = graph.call_function(aten.neg.default, (first,))
    graph.output((second,))
    before = _snapshot(graph)
    edit = Transaction(graph)
    with graph.inserting_before(first):
        added = graph.call_function(aten.sin.default, (second,))
    second.args = (x,)
    first.prepend(second)
    edit.discard([first])
    added.args = (first,)  # behind it, and erased
    graph.output_node().replace_input_with(second, added)
    with pytest.raises(RuntimeError, match="used before it has been defined"):
        edit.commit()
    edit.roll_back()
    assert _snapshot(graph) == before and len(graph.nodes) == 4


def test_tuning_that_fails_leaves_the_model(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    from fusepass.kernels.plan import autotune

    def fail(call: Any) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr(autotune, "tune", fail)
    linear, x = nn.Linear(24, 40), torch.randn(6, 24)
    with torch.no_grad(), caplog.at_level(logging.WARNING, "fusepass"):
        found = compiled(lambda x: F.gelu(linear(x)), options={**QUICK, "max_autotune": True})(x)
        torch.testing.assert_close(found, F.gelu(linear(x)))
    assert [r.exc_info[0] for r in caplog.records if r.name == "fusepass"] == [AttributeError]


# --- sizes that depend on data -------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"max_autotune": True}, {"freezing": True}], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_a_size_that_depends_on_data(options: dict[str, bool], training: bool) -> None:
    linear = nn.Linear(24, 40)

    def model(x: Tensor) -> Tensor:
        return F.gelu(linear(x[x[:, 0] > 0]))

    fast = compiled(model, options={**QUICK, **options})
    patch: Any = torch._dynamo.config.patch(
        capture_dynamic_output_shape_ops=True, error_on_recompile=True
    )
    with patch, torch.set_grad_enabled(training):
        for rows in (16, 16, 16):
            x = torch.randn(rows, 24)
            torch.testing.assert_close(fast(x), model(x))
        if training:
            ours, theirs = (torch.autograd.grad(m(x).sum(), linear.weight) for m in (fast, model))
            torch.testing.assert_close(ours, theirs)
    assert counters["fusepass"]["fused"] == 1


def test_explain_a_size_that_depends_on_data() -> None:
    import fusepass

    linear = nn.Linear(24, 40)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        (site,) = fusepass.explain(
            lambda x: F.gelu(linear(x[x[:, 0] > 0])), torch.randn(9, 24)
        ).sites
    assert (site.n, site.k) == ("40", "24") and not site.m.isdigit()
