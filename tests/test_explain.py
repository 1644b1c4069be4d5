"""explain: what it says of graphs, and that saying it costs no code generation."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusepass
from fusepass.report import Miss, Report, publish


class Model(nn.Module):
    def __init__(self, breaks: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.breaks = breaks

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.gelu(self.up(x) * 0.5)
        if self.breaks:
            torch._dynamo.graph_break()
        return nn.functional.relu(self.down(h))


EPILOGUES = ["mul(0.5) gelu", "clamp(0.0, inf)"]
GRADIENT = "mat0 mul(0.5) gelu_derivative mul(z) mul(0.5)"


@pytest.fixture(autouse=True)
def _no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.graph import GraphLowering

    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError("Inductor generates code")

    monkeypatch.setattr(GraphLowering, "__init__", refuse)


def test_the_guard_works() -> None:
    with pytest.raises(Exception, match="Inductor generates code"):
        torch.compile(Model(), backend="fusepass")(torch.randn(4, 8))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("breaks", [False, True])
def test_without_code(grad: bool, breaks: bool) -> None:
    with torch.set_grad_enabled(grad):
        report = fusepass.explain(Model(breaks), torch.randn(4, 8))
    forward = [s for s in report.sites if not s.backward]
    assert [s.epilogue for s in forward] == EPILOGUES
    assert [s.graph for s in forward] == [0, int(breaks)]
    assert [s.module for s in forward] == ["up", "down"]
    # Behind the product for down's input stands gelu's derivative, if both are of one graph.
    backward = [s.epilogue for s in report.sites if s.backward]
    assert backward == ([GRADIENT] if grad and not breaks else [])
    assert all(m.backward for m in report.misses)
    assert len(report.graphs) == 1 + breaks
    for before, after in report.graphs:
        assert "fusepass.linear" in after and "fusepass.linear" not in before
    # What gelu's backward starts from is kept; relu's needs its result alone.
    assert ("fusepass.linear_with_preact" in report.graphs[0][1]) == grad


def test_ten_times_the_same_model() -> None:
    model = Model()
    for _ in range(10):
        assert len(fusepass.explain(model, torch.randn(4, 8)).sites) == 3


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


def test_several_results_of_one_product() -> None:
    """A result more reads what the first does not; z beside them is no part of the epilogue."""
    one, other = nn.Linear(24, 40), nn.Linear(40, 40)

    def model(x: Tensor) -> tuple[Tensor, ...]:
        z = one(x)
        return nn.functional.gelu(z), torch.tanh(z), nn.functional.relu(other(z))

    with torch.no_grad():
        report = fusepass.explain(model, torch.randn(6, 24))
    assert [s.epilogue for s in report.sites] == ["gelu, tanh", "clamp(0.0, inf)"]
    assert all("torch's GEMM" in str(site.kernel) for site in report.sites)


def test_a_model_without_a_graph_is_not_told_that_it_has_no_linear() -> None:
    report = fusepass.explain(Recurrent(), torch.randn(2, 3, 8))
    (note,) = report.notes
    assert str(report).endswith(f"\n  note  {note}")
    if report.graphs:  # newer versions of torch compile what comes behind the recurrent layer
        assert note.startswith("a part runs outside of the graphs: Dynamo does not support RNN")
        (miss,) = (m for m in report.misses if not m.backward)
        assert miss.module in ("out", None)  # 2.15 has no name for it behind the break
        assert ", in forward: return self.out(self.rnn(x)[0])" in str(miss.source)
        return
    assert "Linear" not in str(report)
    assert note.startswith("torch.compile made no graph of this model: Dynamo does not support RNN")
    again = fusepass.explain(Recurrent(), torch.randn(2, 3, 8))  # Dynamo may not say it twice
    assert again.notes[0].startswith("torch.compile made no graph of this model")


def test_what_is_outside_of_the_graphs_is_told() -> None:
    def broken(x: Tensor) -> Tensor:
        x = torch.nn.functional.relu(x @ x)
        torch._dynamo.graph_break()
        return torch.nn.functional.relu(x @ x)

    report = fusepass.explain(broken, torch.randn(4, 4))
    assert len(report.graphs) == 2 and len(report.sites) == 2
    assert len(report.notes) == 1 and "outside of the graphs: " in report.notes[0]


def test_what_is_no_model_is_told() -> None:
    with pytest.raises(ValueError, match="compiled already"):
        fusepass.explain(torch.compile(Model()), torch.randn(4, 8))
    with pytest.raises(ValueError, match="must be a module or a function"):
        fusepass.explain(3)


def test_what_other_threads_compile_is_not_reported() -> None:
    def elsewhere(graph: torch.fx.Graph) -> None:
        thread = threading.Thread(target=publish, args=(Report((), (Miss("no", "mm", None),)),))
        thread.start()
        thread.join()

    options = {"joint_custom_pre_pass": elsewhere}
    with torch.no_grad():
        assert fusepass.explain(Model(), torch.randn(4, 8), options=options).misses == ()


def test_the_users_own_pass_goes_first() -> None:
    """It takes the factor out: what is explained is the graph that this leaves."""

    def without_mul(graph: torch.fx.Graph) -> None:
        first = next(iter(graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)))
        first.replace_all_uses_with(first.args[0])
        graph.erase_node(first)

    options = {"joint_custom_pre_pass": without_mul}
    with torch.no_grad():
        report = fusepass.explain(Model(), torch.randn(4, 8), options=options)
    assert [s.epilogue for s in report.sites] == ["gelu", "clamp(0.0, inf)"]


def _decorated(forward: Any) -> Any:
    @functools.wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return wrapper


class Decorated(nn.Module):
    """As transformers' models are: their forward is wrapped by a function of ``*args``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    @_decorated
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = nn.functional.gelu(layer(x))
        return x


def test_modules_have_the_names_that_their_author_gave_them() -> None:
    with torch.no_grad():
        report = fusepass.explain(Decorated(), torch.randn(4, 8))
    assert [site.module for site in report.sites] == ["layers.0", "layers.1"]


def test_a_site_that_reads_tensors_has_its_kernel_told() -> None:
    linear, x, residual = nn.Linear(16, 24), torch.randn(6, 16), torch.randn(6, 24)
    with torch.no_grad():
        report = fusepass.explain(lambda x, r: nn.functional.gelu(linear(x)) + r, x, residual)
    (site,) = report.sites
    assert site.epilogue == "gelu add(mat0)"
    assert site.kernel == "torch's GEMM, then code that Inductor generates" and site.why
