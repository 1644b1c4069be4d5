"""Products that write over an x which nobody reads again: only where that is so."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.fx.experimental.proxy_tensor import make_fx

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)
from fusepass.examples.gemm_scaling_hardtanh_gelu import Model
from fusepass.kernels.plan import f32 as plan_f32
from fusepass.kernels.plan import few as plan_few
from fusepass.op import presplit
from fusepass.rewrite import decision
from fusepass.rewrite.dying import consume_in
from fusepass.rewrite.sooner import run_sooner_in

LINEAR = torch.ops.fusepass.linear
TOKENS, WIDTH = 8, 64


@pytest.fixture(autouse=True)
def as_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the plan took the split kernel for every call, and pieces of any size were much."""
    for module in (presplit, decision):
        monkeypatch.setattr(module, "fuses", lambda *args: True)
    monkeypatch.setattr(decision, "has_fused_gemm", lambda *args: True)
    monkeypatch.setattr(plan_few, "choose", lambda *args, **kwargs: None)
    monkeypatch.setattr(plan_f32, "_MUCH", 0)


@pytest.fixture
def spoiled() -> Iterator[list[Tensor]]:
    """What calls wrote over: with NaN, as a kernel's pieces would be to whoever read them."""
    taken: list[Tensor] = []

    def kernel(x: Tensor, *rest: object) -> Tensor:
        out: Tensor = LINEAR.default(x, *rest)
        taken.append(x.fill_(float("nan")))
        return out

    library = torch.library.Library("fusepass", "IMPL")
    library.impl("linear.consuming", kernel, "CPU")
    with torch._inductor.config.patch(fx_graph_cache=False):
        yield taken
    library._destroy()


def check_training(model: nn.Module, x: Tensor) -> None:
    (torch.compile(model, backend="fusepass")(x).sin() * x[:, :1]).sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    (model(x).sin() * x[:, :1]).sum().backward()
    for ours, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-4)


def test_the_demos_weight_gradient_writes_over_that_of_z(spoiled: list[Tensor]) -> None:
    torch.manual_seed(0)
    check_training(Model(WIDTH, WIDTH, 0.5, -2.0, 2.0), torch.randn(TOKENS, WIDTH))
    (x,) = spoiled
    assert x.shape == (WIDTH, TOKENS) and x.stride() == (1, WIDTH)


def test_only_the_last_product_that_reads_a_gradient_writes_over_it(spoiled: list[Tensor]) -> None:
    """Of the second layer's it is read twice: by the product of the first layer's before."""
    torch.manual_seed(1)
    model = nn.Sequential(*(m for _ in range(2) for m in (nn.Linear(WIDTH, WIDTH), nn.Tanh())))
    check_training(model, torch.randn(TOKENS, WIDTH))
    assert len(spoiled) == 2


# --- by hand -------------------------------------------------------------------------------------


def product(g: Tensor, a: Tensor) -> Tensor:
    out: Tensor = LINEAR(g.t(), a.t(), None, "", [])
    return out


def taken(f: Callable[[Tensor, Tensor], object]) -> int:
    """How many calls of ``f``'s graph of two matrices may write over their x."""
    a, b = torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, WIDTH)
    graph: Graph = make_fx(f, tracing_mode="fake")(a, b).graph
    consume_in(graph)
    graph.lint()
    return len(graph.find_nodes(op="call_function", target=LINEAR.consuming))


def test_what_is_read_before_may_be_written() -> None:
    assert taken(lambda a, b: product(a * b, a)) == 1

    def summed(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        g = a * b
        return g.sum(0), product(g, a)

    assert taken(summed) == 1

    def twice(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        g = a * b
        return product(g, a), product(g, b)

    assert taken(twice) == 1  # the second one

    def summed_later(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        g = a * b
        return product(g, a), g.sum(0)

    assert taken(summed_later) == 1  # it moves


def test_it_does_not_run_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Than what else reads x, however large what is written between is."""
    monkeypatch.setattr(plan_f32, "_MOST_PIECES", 0)

    def f(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        g = a * b
        large = torch.cat([a] * 2 * WIDTH)
        return product(g, b), large, product(g, a)

    a, b = torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, WIDTH)
    graph: Graph = make_fx(f, tracing_mode="fake")(a, b).graph
    consume_in(graph)
    run_sooner_in(graph)
    targets = [node.target for node in graph.nodes]
    assert targets.count(LINEAR.consuming) == 1
    assert targets.index(LINEAR.consuming) > targets.index(LINEAR.default)


def later(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    g = a * b
    return product(g, a), g.sin().sum(0)


def summed_of_what_is_later(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    g = a * b
    z = product(g, a)
    return z, g.view(-1).sum(0)


def returned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    g = a * b
    return product(g, a), g.t()


def copied(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Inductor might leave the copy out."""
    g = a * b
    h = g.clone()
    return product(g, a), h


def a_view_later(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    g = a * b
    row = g[0]
    return product(g, a), row.exp()


def both_operands(a: Tensor, b: Tensor) -> Tensor:
    g = a * b
    return product(g, g)


LIVING = {
    "read later": later,
    "a sum reads a later view": summed_of_what_is_later,
    "returned": returned,
    "copied": copied,
    "a view of it is read later": a_view_later,
    "it is the weight, too": both_operands,
    "an input": lambda a, b: product(a, b),
    "a view of an input": lambda a, b: product(a[:, :WIDTH], b),
    "a copy that might be an input": lambda a, b: product(a.clone(), b),
    "rows of K": lambda a, b: LINEAR((a * b), torch.cat([a, b]), None, "", []),
}


@pytest.mark.parametrize("why", LIVING)
def test_what_lives_is_not_written(why: str) -> None:
    assert taken(LIVING[why]) == 0


def test_pieces_of_little_memory_or_more_than_the_output_are_the_calls_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan_f32, "_MUCH", 4 * TOKENS * 2 * WIDTH)
    assert taken(lambda a, b: product(a * b, a)) == 0
    monkeypatch.setattr(plan_f32, "_MUCH", 4 * TOKENS * 2 * WIDTH - 1)
    assert taken(lambda a, b: product(a * b, a)) == 1
    monkeypatch.setattr(plan_f32, "_MUCH", 0)
    # 8 x 8 numbers of 8 tokens are fewer than their pieces.
    assert taken(lambda a, b: product((a * b)[:, :8].mul(2), b[:, :8])) == 0


def test_where_cpp_calls_the_ops_they_stay_as_they_are() -> None:
    with torch._inductor.config.patch(cpp_wrapper=True):
        assert taken(lambda a, b: product(a * b, a)) == 0


def test_by_itself_it_is_linear() -> None:
    x, w = torch.randn(WIDTH, TOKENS), torch.randn(WIDTH, TOKENS)
    expected = LINEAR(x, w, None, "", [])
    assert torch.equal(LINEAR.consuming(x, w, None, "", []), expected)
    assert LINEAR.consuming._schema.is_mutable
