"""explain leaves the user's functions as they were: compiled or not, and for the sizes they saw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import gelu, linear

from fusepass import explain

TIMES = torch._dynamo.config.recompile_limit + 1


class Counting:
    """A backend that counts its graphs and keeps their inputs."""

    def __init__(self) -> None:
        self.inputs: list[list[Any]] = []

    def __call__(self, gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.inputs.append(inputs)
        return gm.forward


def _function(breaks: bool) -> Any:
    """A function of its own each time, with a code object of its own."""
    scope: dict[str, Any] = {"gelu": gelu, "linear": linear, "torch": torch}
    middle = "    torch._dynamo.graph_break()\n" if breaks else ""
    text = f"def f(x, w):\n    h = gelu(linear(x, w))\n{middle}    return gelu(linear(h, w))\n"
    exec(compile(text, f"<function {breaks}>", "exec"), scope)
    return scope["f"]


def _inputs(rows: int = 8, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 16, dtype=dtype), torch.randn(16, 16, dtype=dtype)


@pytest.mark.parametrize("breaks", [False, True])
def test_what_was_never_compiled_still_compiles(breaks: bool) -> None:
    function, graphs = _function(breaks), 1 + breaks
    for _ in range(TIMES):
        assert len(explain(function, *_inputs()).graphs) == graphs
    backend = Counting()
    torch.compile(function, backend=backend)(*_inputs())
    assert len(backend.inputs) == graphs


@pytest.mark.parametrize("breaks", [False, True])
def test_what_was_compiled_stays_so_and_may_be_compiled_again(breaks: bool) -> None:
    function, graphs, backend = _function(breaks), 1 + breaks, Counting()
    compiled = torch.compile(function, backend=backend)
    compiled(*_inputs())
    for _ in range(TIMES):
        explain(function, *_inputs())
    compiled(*_inputs())
    assert len(backend.inputs) == graphs  # nothing was compiled twice
    compiled(*_inputs(dtype=torch.float64))
    assert len(backend.inputs) == 2 * graphs


def test_even_without_end() -> None:
    """Dynamo has a second limit, of all it ever compiled for a function."""
    function, backend = _function(False), Counting()
    compiled = torch.compile(function, backend=backend)
    compiled(*_inputs())
    with torch._dynamo.config.patch(accumulated_recompile_limit=12):
        for _ in range(14):
            explain(function, *_inputs())
        count = len(backend.inputs)
        compiled(*_inputs(dtype=torch.float64))
    assert len(backend.inputs) == count + 1


def test_another_size_than_the_explained_one_is_not_a_change_of_size() -> None:
    function, backend = _function(False), Counting()
    explain(function, *_inputs(rows=8))
    torch.compile(function, backend=backend)(*_inputs(rows=24))
    (inputs,) = backend.inputs
    assert all(isinstance(size, int) for t in inputs for size in t.shape)


def test_a_size_that_did_change_is_explained_as_it_is() -> None:
    function, backend = _function(False), Counting()
    compiled = torch.compile(function, backend=backend)
    for rows in (8, 24):
        compiled(*_inputs(rows=rows))
    ((before, _),) = explain(function, *_inputs(rows=32)).graphs
    assert "f32[32, 16]" not in before  # the rows are a symbol
    compiled(*_inputs(rows=40))
    assert len(backend.inputs) == 2
