"""Two GEMMs of one x that meet in one epilogue become one op: which do and do not, and numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from epilogues import CHANCE, error
from graphs import Fused, fuse
from torch import Tensor, nn

from fusepass.rewrite import decision

F = torch.nn.functional
Join = Callable[[Tensor, Tensor], Tensor]


def clamped(gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * (gate * torch.sigmoid(gate * 1.702))


# How gate and up are joined, and the epilogue that it is.
JOINS: dict[str, tuple[Join, str]] = {
    "SwiGLU": (lambda g, u: F.silu(g) * u, "silu mul(z1)"),
    "SwiGLU, up first": (lambda g, u: u * F.silu(g), "silu mul(z1)"),
    "GeGLU": (lambda g, u: F.gelu(g) * u, "gelu mul(z1)"),
    "GeGLU, tanh": (lambda g, u: F.gelu(g, approximate="tanh") * u, "gelu_tanh mul(z1)"),
    "ReGLU": (lambda g, u: F.relu(g) * u, "clamp(0.0, inf) mul(z1)"),
    "GLU": (lambda g, u: torch.sigmoid(g) * u, "sigmoid mul(z1)"),
    "clamped": (
        clamped,
        "v0 = clamp(-inf, 7.0) quick_gelu; z1 clamp(-7.0, 7.0) add(1.0) mul(v0)",
    ),
    "bilinear": (lambda g, u: g * u, "mul(z1)"),
    "a sum": (lambda g, u: torch.tanh(g) + u, "tanh add(z1)"),
}


class Separate(nn.Module):
    """Gate and up as two parameters; more of them in ``others``, which read the same x."""

    def __init__(self, join: Join, bias: tuple[bool, bool] = (False, False), **kwargs: Any) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 96, bias=bias[0], **kwargs)
        self.up = nn.Linear(64, 96, bias=bias[1], **kwargs)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.gate(x), self.up(x))


class Halves(nn.Module):
    """Gate and up as the halves of one parameter, in the order of ``cut``'s results."""

    def __init__(self, cut: Callable[[Tensor], Any], join: Join, **kwargs: Any) -> None:
        super().__init__()
        self.both = nn.Linear(64, 192, **kwargs)
        self.cut, self.join = cut, join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(*self.cut(self.both(x)))


def silu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


CUTS: dict[str, Callable[[Tensor], Any]] = {
    "chunk": lambda y: y.chunk(2, dim=-1),
    "chunk, up first": lambda y: y.chunk(2, dim=-1)[::-1],
    "split": lambda y: y.split(96, dim=-1),
    "split by sizes": lambda y: y.split([96, 96], dim=-1),
    "slices": lambda y: (y[..., :96], y[..., 96:]),
    "slices, up first": lambda y: (y[..., 96:], y[..., :96]),
    "tensor_split": lambda y: y.tensor_split(2, dim=-1),
    "narrow": lambda y: (y.narrow(-1, 0, 96), y.narrow(-1, 96, 96)),
}
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def sites_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of every dtype are had there, where the pass itself leaves two products apart."""
    monkeypatch.setattr(decision, "_ON_THE_CPU", None)


def calls(fused: Fused) -> list[torch.fx.Node]:
    """Of the op, with two weights."""
    targets = (torch.ops.fusepass.gemm.default, torch.ops.fusepass.gemm.constant)
    every = [n for g in fused.graphs for n in g.nodes if n.target in targets]
    return [n for n in every if len(n.args[1]) == 2]


def products(fused: Fused) -> int:
    """How many of torch's GEMMs are left in the graphs."""
    kinds = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return sum(n.target in kinds for g in fused.graphs for n in g.nodes)


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


# --- what is left as it is ------------------------------------------------------------------------


def test_a_gate_that_something_else_reads_is_an_output() -> None:
    class Also(Separate):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            gate = self.gate(x)
            return F.silu(gate) * self.up(x), gate

    model, x = Also(silu), torch.randn(6, 64)
    fused = fuse(model)
    with torch.no_grad():
        for found, eager in zip(fused(x), model(x), strict=True):
            torch.testing.assert_close(found, eager)
    (call,) = calls(fused)
    assert call.args[3] in ("silu mul(z1), z", "silu mul(z1), z1")


def other_x(model: Separate, x: Tensor) -> Tensor:
    return F.silu(model.gate(x)) * model.up(x + 1)


def one_behind_the_other(model: Separate, x: Tensor) -> Tensor:
    gate = model.gate(x)
    return F.silu(gate) * F.linear(x, model.up.weight * gate.mean())


def never_met(model: Separate, x: Tensor) -> Tensor:
    return torch.cat([F.silu(model.gate(x)), model.up(x)], -1)


def met_in_a_softmax(model: Separate, x: Tensor) -> Tensor:
    return F.softmax(model.gate(x), -1) * model.up(x)


def of_other_rows(model: Separate, x: Tensor) -> Tensor:
    return F.silu(model.gate(x)) * model.up(x).flip(0)


@pytest.mark.parametrize(
    "forward", [other_x, one_behind_the_other, never_met, met_in_a_softmax, of_other_rows]
)
def test_what_one_kernel_could_not_compute(forward: Callable[[Separate, Tensor], Tensor]) -> None:
    model, x = Separate(silu), torch.randn(8, 64)
    fused = fuse(lambda x: forward(model, x))
    with torch.no_grad():
        torch.testing.assert_close(fused(x), forward(model, x))
    assert calls(fused) == []


CUTS_LEFT: dict[str, Callable[[Tensor], Any]] = {
    "thirds": lambda y: y.chunk(3, dim=-1)[:2],
    "uneven": lambda y: (y[..., :64], y[..., 64:128]),
    "overlapping": lambda y: (y[..., :100], y[..., 92:]),
    "by turns": lambda y: (y[..., ::2], y[..., 1::2]),
    "rows": lambda y: y.chunk(2, dim=0),
}


@pytest.mark.parametrize("name", CUTS_LEFT)
def test_parts_that_are_no_halves(name: str) -> None:
    model, x = Halves(CUTS_LEFT[name], silu, dtype=torch.bfloat16), torch.randn(256, 64).bfloat16()
    fused = fuse(model, hopper=True)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
    assert calls(fused) == []


def test_the_whole_result_is_read_beside_its_halves() -> None:
    class Whole(Halves):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.both(x)
            return self.join(*self.cut(y)), y

    model = Whole(CUTS["chunk"], silu, dtype=torch.bfloat16)
    x = torch.randn(256, 64, dtype=torch.bfloat16)
    fused = fuse(model, hopper=True)
    with torch.no_grad():
        for found, eager in zip(fused(x), model(x), strict=True):
            torch.testing.assert_close(found, eager)
    assert calls(fused) == []


def test_bitwise_rounds_each_product() -> None:
    model, x = Separate(silu, dtype=torch.bfloat16), torch.randn(8, 64, dtype=torch.bfloat16)
    fused = fuse(model, "bitwise")
    with torch.no_grad():
        assert torch.equal(fused(x), model(x))
    assert calls(fused) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_on_a_gpu_only_where_one_kernel_does_it(dtype: torch.dtype) -> None:
    model, x = Separate(silu, dtype=dtype), torch.randn(128, 64, dtype=dtype)
    fused = fuse(model, hopper=True)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
    assert calls(fused) == []


def test_query_key_and_value_are_no_gate() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(64, 64) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (m(x).view(2, 10, 4, 16).transpose(1, 2) for m in (self.q, self.k, self.v))
            return F.scaled_dot_product_attention(q, k, v)

    model, x = Attention(), torch.randn(2, 10, 64)
    fused = fuse(model)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
    assert calls(fused) == []


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
