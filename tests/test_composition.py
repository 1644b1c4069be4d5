"""Everything else people do to compiled models."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from typing import Any

import pytest
import torch
from small_models import QUICK, EncoderLayer, Mlp, block, compiled, fused
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset

pytestmark = pytest.mark.usefixtures("one_thread")


def _check(run: Any, model: Any, *args: Tensor) -> None:
    with torch.no_grad():
        assert_close(run(*args), model(*args))


class _Broken(nn.Module):
    """A graph break between two sites."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x))
        torch._dynamo.graph_break()
        return F.relu(self.second(x))


def test_graph_break() -> None:
    model = _Broken()
    _check(compiled(model, options=QUICK), model, torch.randn(4, 16))
    assert fused() == 2
    assert sum(counters["graph_break"].values()) == 1


def test_a_break_inside_an_epilogue_loses_only_that_site() -> None:
    linear = nn.Linear(16, 16)

    def function(x: Tensor) -> Tensor:
        x = F.gelu(linear(x))
        z = linear(x)
        torch._dynamo.graph_break()
        return F.gelu(z)

    _check(compiled(function, options=QUICK), function, torch.randn(4, 16))
    assert fused() == 1


def test_fullgraph_of_a_function() -> None:
    weight, bias = torch.randn(24, 16), torch.randn(24)

    def function(x: Tensor) -> Tensor:
        return F.gelu(F.linear(x, weight, bias) * 0.5)

    _check(compiled(function, options=QUICK, fullgraph=True), function, torch.randn(4, 16))
    assert fused() == 1


def test_regional_compile_of_repeated_blocks() -> None:
    model = nn.Sequential(*(EncoderLayer(16, 2) for _ in range(4)))
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = model(x)
        for layer in model:
            layer.compile(backend="fusepass", options={**QUICK, "fx_graph_cache": False})
        assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert fused() == 3  # compiled once, used four times: GELU and two residuals


def test_state_dicts_go_between_fused_and_unfused() -> None:
    source, target, x = block(), block(), torch.randn(4, 32)
    fast = compiled(source, options=QUICK)
    _check(fast, source, x)
    assert list(source.state_dict()) == list(target.state_dict())
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(x), source(x))
    # And back: new weights are seen without another compile.
    other = block()
    source.load_state_dict(other.state_dict())
    with torch._dynamo.config.patch(error_on_recompile=True):
        _check(fast, other, x)


def test_saving_the_original_of_a_compiled_module() -> None:
    model, x = block(), torch.randn(4, 32)
    fast = compiled(model, options=QUICK)
    _check(fast, model, x)
    file = io.BytesIO()
    torch.save(fast._orig_mod, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x), model(x))
    assert type(loaded) is type(model)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent_and_fuse(how: Any) -> None:
    model, x = block(), torch.randn(4, 32)
    model.compile(backend="fusepass", options={**QUICK, "fx_graph_cache": False})
    _check(model, model._call_impl, x)
    twin = how(model)
    with torch.no_grad():
        twin.gemm.weight.zero_()
        assert_close(twin(x), F.gelu((twin.gemm.bias * 0.5).clamp(-2, 2)).expand(4, -1))
        assert not torch.equal(twin(x), model(x))
    torch._dynamo.reset()
    counters.clear()
    again = compiled(how(block()), options=QUICK)
    with torch.no_grad():
        again(x)
    assert fused() == 1


def test_a_deepcopy_of_the_wrapper() -> None:
    model, x = block(), torch.randn(4, 32)
    fast = compiled(model, options=QUICK)
    _check(fast, model, x)
    _check(copy.deepcopy(fast), model, x)


class _Rows(Dataset[Tensor]):
    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers_beside_a_compiled_model(context: str) -> None:
    model, rows = block(), torch.randn(12, 32)
    fast = compiled(model, options=QUICK)
    _check(fast, model, rows[:4])  # compiled before the workers start
    loader = DataLoader(_Rows(rows), batch_size=4, num_workers=2, multiprocessing_context=context)
    with torch.no_grad():
        found = torch.cat([fast(batch) for batch in loader])
    assert_close(found, model(rows).detach())


class _Transformed(_Rows):
    """A worker that runs the compiled model itself."""

    def __init__(self, rows: Tensor, run: Any) -> None:
        super().__init__(rows)
        self.run = run

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            out: Tensor = self.run(self.rows[index : index + 1])
        return out[0]


def test_a_forked_worker_runs_the_compiled_model() -> None:
    model, rows = block(), torch.randn(4, 32)
    fast = compiled(model, options=QUICK)
    _check(fast, model, rows[:1])
    loader = DataLoader(_Transformed(rows, fast), num_workers=1, multiprocessing_context="fork")
    assert_close(torch.cat(list(loader)), model(rows).detach())


# torch 2.11's own compiler, Inductor's too, ends the process when four threads compile at once.
_THREADS_COMPILE = pytest.mark.skipif(
    torch.__version__ < "2.12", reason="torch 2.11 does not compile in several threads at once"
)


@pytest.mark.parametrize(
    "warm",
    [
        pytest.param(True, id="compiled before"),
        pytest.param(False, id="compiled by them", marks=_THREADS_COMPILE),
    ],
)
def test_several_threads_call_one_compiled_model(warm: bool) -> None:
    model, x = Mlp(32, 48), torch.randn(8, 32)
    fast = compiled(model, options=QUICK)
    with torch.no_grad():
        expected = model(x)
        if warm:
            fast(x)
    results: list[Any] = []
    start = threading.Barrier(4)

    def call() -> None:
        start.wait()
        try:
            with torch.no_grad():
                results.extend(fast(x) for _ in range(20))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80, results
    for result in results:
        assert_close(result, expected)
    assert fused() >= 1


def test_compiled_autograd() -> None:
    model, x = Mlp(16, 24).double(), torch.randn(4, 16, dtype=torch.float64)
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    backend = torch.compile(backend="fusepass", options={**QUICK, "fx_graph_cache": False})
    with torch._dynamo.compiled_autograd._enable(backend):
        compiled(model, options=QUICK)(x).square().sum().backward()
    found = [p.grad for p in model.parameters()]
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert fused() == 2  # GELU, and its derivative
