"""Two GEMMs of one x that meet in one epilogue become one op, and its numbers and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from epilogues import CHANCE, error
from gated_models import CUTS, DTYPES, JOINS, Halves, Separate, calls, products, silu
from graphs import Fused, fuse
from torch import Tensor, nn

from fusepass.kernels.calls import calls_in

F = torch.nn.functional
pytestmark = pytest.mark.usefixtures("pairs_on_the_cpu")


def check(model: nn.Module, x: Tensor, epilogues: list[str], **kwargs: Any) -> Fused:
    """Asserts the sites' epilogues, and an error against float64 like eager's."""
    with torch.no_grad():
        fused = fuse(model, **kwargs)
        found, eager = fused(x), model(x)
        exact = copy.deepcopy(model).double()(x.double())
    assert fused.epilogues == epilogues
    assert found.dtype == eager.dtype and found.shape == eager.shape
    assert found.stride() == eager.stride()
    assert error(found, exact) <= error(eager, exact) + CHANCE[found.dtype]
    return fused


@pytest.mark.parametrize("hopper", [False, True], ids=["CPU", "H200"])
@pytest.mark.parametrize("name", JOINS)
def test_gate_and_up_are_one_op(name: str, hopper: bool) -> None:
    join, text = JOINS[name]
    x = torch.randn(3, 50, 64, dtype=torch.bfloat16)
    fused = check(Separate(join, dtype=x.dtype), x, [text, text], hopper=hopper)
    (call,) = calls(fused)
    assert len(call.args[1]) == 2 and products(fused) == 0
    assert not fused.report.misses
    (told,) = calls_in(fused.graphs[0])  # as autotuning and explain read it
    assert (told.m, told.k, told.group) == (150, 64, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [(True, True), (True, False), (False, True)], ids=str)
def test_biases_of_both_or_one(dtype: torch.dtype, bias: tuple[bool, bool]) -> None:
    x = torch.randn(7, 64, dtype=dtype)
    fused = check(Separate(silu, bias, dtype=dtype), x, ["silu mul(z1)"] * 2)
    (call,) = calls(fused)
    assert tuple(b is not None for b in call.args[2]) == bias


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CUTS)
def test_halves_of_one_weight(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, 50, 64, dtype=dtype)
    fused = check(Halves(CUTS[name], silu, dtype=dtype), x, ["silu mul(z1)"], hopper=True)
    (call,) = calls(fused)
    weights, biases = call.args[1], call.args[2]
    rows = [list(w.args[1:]) for w in weights]
    assert sorted(rows) == [[0, 0, 96], [0, 96, 192]] and products(fused) == 0
    assert [list(b.args[1:]) for b in biases] == rows


@pytest.mark.parametrize("dims", [1, 2, 4])
def test_any_number_of_dimensions(dims: int) -> None:
    x = torch.randn(*[9] * (dims - 1), 64)
    check(Separate(silu), x, ["silu mul(z1)"] * 2)
    x = torch.randn(*[90, 2, 3][: dims - 1], 64, dtype=torch.bfloat16)
    model = Halves(CUTS["chunk"], silu, dtype=x.dtype)
    check(model, x, ["silu mul(z1)"], hopper=True)


@pytest.mark.parametrize("model", [Halves(CUTS["chunk"], silu), Separate(silu)], ids=["halves", ""])
def test_on_the_cpu_nothing_is_gained(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    monkeypatch.undo()
    fused = fuse(model)
    x = torch.randn(9, 64)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
    assert calls(fused) == []


def test_weights_stored_by_input() -> None:
    class Stored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.randn(64, 96))
            self.up = nn.Parameter(torch.randn(64, 96))

        def forward(self, x: Tensor) -> Tensor:
            return F.silu(x @ self.gate) * (x @ self.up)

    check(Stored(), torch.randn(5, 64), ["silu mul(z1)"] * 2)


def test_both_linears_are_told_as_taken() -> None:
    fused = check(Separate(silu), torch.randn(9, 64), ["silu mul(z1)"] * 2)
    gate, up = fused.report.sites
    assert {gate.module, up.module} == {"gate", "up"} and gate.node != up.node
    assert gate.flops == up.flops == 2 * 9 * 64 * 96


# --- training -------------------------------------------------------------------------------------


def gradients(
    function: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor, cotangent: Tensor
) -> list[Tensor]:
    dtype = next(model.parameters()).dtype
    x = x.to(dtype, copy=True).requires_grad_()
    function(x).backward(cotangent.to(dtype))
    found = [x.grad, *(p.grad for p in model.parameters())]
    assert all(g is not None for g in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["SwiGLU", "GeGLU", "clamped", "bilinear"])
@pytest.mark.parametrize("halves", [False, True], ids=["separate", "halves"])
def test_gradients_are_the_original_graphs(name: str, halves: bool) -> None:
    join, text = JOINS[name]
    dtype = torch.bfloat16 if halves else torch.float32
    model = Halves(CUTS["chunk"], join) if halves else Separate(join, (True, False))
    model = model.to(dtype)
    exact, eager = copy.deepcopy(model).double(), copy.deepcopy(model)
    x = torch.randn(4, 30, 64, dtype=dtype)
    cotangent = torch.randn(4, 30, 96, dtype=dtype)
    fused = fuse(model, hopper=halves)
    ours, wanted = gradients(fused, model, x, cotangent), gradients(exact, exact, x, cotangent)
    assert fused.epilogues[: 1 if halves else 2] == [text] * (1 if halves else 2)
    for found, true, theirs in zip(
        ours, wanted, gradients(eager, eager, x, cotangent), strict=True
    ):
        assert error(found, true) <= 1.02 * error(theirs, true) + CHANCE[dtype]


def test_training_keeps_what_the_backward_reads_and_multiplies_once() -> None:
    fused = fuse(Separate(silu, dtype=torch.bfloat16))
    fused(torch.randn(40, 64, dtype=torch.bfloat16, requires_grad=True)).sum().backward()
    (call,) = calls(fused)
    assert call.args[3] == "silu mul(z1), z, z1"
    backward = [site for site in fused.report.sites if site.backward]
    assert len(backward) + products(fused) == 4  # two gradients of the weights, two of x


# --- more than one --------------------------------------------------------------------------------


def test_one_compile_for_many_lengths() -> None:
    model = Separate(silu, dtype=torch.bfloat16)
    fused = fuse(model, dynamic=True)
    with torch.no_grad():
        for length in (5, 17, 40):
            x = torch.randn(2, length, 64, dtype=torch.bfloat16)
            torch.testing.assert_close(fused(x), model(x), rtol=2e-2, atol=2e-2)
    assert len(fused.graphs) == 1 and len(calls(fused)) == 1


def test_one_weight_for_gate_and_up() -> None:
    model = Separate(silu)
    model.up.weight = model.gate.weight
    fused = check(model, torch.randn(8, 64), ["silu mul(z1)"] * 2)
    assert len(calls(fused)) == 1


def test_layers_of_a_decoder() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp, self.down = Separate(silu), nn.Linear(96, 64, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.mlp(F.rms_norm(x, (64,))))

    model = nn.Sequential(*(Layer() for _ in range(3)))
    x = torch.randn(2, 20, 64)
    fused = fuse(model)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
    assert len(calls(fused)) == 3
