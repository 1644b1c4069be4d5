"""However it is written, the seed's sequence is one site with one text."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import fuse
from torch import nn

SITE = "mul(0.5) clamp(-2.0, 2.0) gelu"
Tail = Callable[[torch.Tensor], torch.Tensor]


class Model(nn.Module):
    """A Linear and whatever follows it; wide enough that all stages matter."""

    def __init__(self, tail: Tail, dtype: torch.dtype = torch.float32, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 40, bias=bias, dtype=dtype)
        nn.init.normal_(self.linear.weight)
        self.tail = tail

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.linear(x))


def check(
    model: nn.Module, x: torch.Tensor, epilogues: list[str], numerics: str = "accurate", **kwargs
) -> list[str]:
    """Asserts the sites, and numbers no worse than eager's against float64; the misses' reasons."""
    with torch.no_grad():
        fused = fuse(model, numerics, **kwargs)
        found, eager = fused(x), model(x)
        exact = copy.deepcopy(model).double()(x.double())
    assert fused.epilogues == epilogues
    assert found.dtype == eager.dtype and found.shape == eager.shape
    assert found.stride() == eager.stride()
    worst = (eager.double() - exact).abs().max()
    assert (found.double() - exact).abs().max() <= 1.25 * worst + 1e-6 * exact.abs().max()
    if numerics == "bitwise":
        assert torch.equal(found, eager)
    return fused.reasons


def constant(value: float) -> torch.Tensor:
    return torch.tensor(value)


SCALES: dict[str, Tail] = {
    "x*c": lambda x: x * 0.5,
    "c*x": lambda x: 0.5 * x,
    "x/2": lambda x: x / 2,
    "mul": lambda x: x.mul(0.5),
    "mul_": lambda x: x.mul_(0.5),
    "div_": lambda x: x.div_(2.0),
    "torch.mul": lambda x: torch.mul(x, 0.5),
    "true_divide": lambda x: torch.true_divide(x, 2),
    "multiply": lambda x: torch.multiply(x, 0.5),
    "tensor": lambda x: x * constant(0.5),
    "full": lambda x: x * torch.full((), 0.5),
    "full_like": lambda x: x * torch.full_like(x, 0.5),
    "two negations": lambda x: -(x * -0.5),
    "chain": lambda x: x * 0.625 * 0.8,
}

CLAMPS: dict[str, Tail] = {
    "Hardtanh": nn.Hardtanh(-2, 2),
    "Hardtanh inplace": nn.Hardtanh(-2, 2, inplace=True),
    "F.hardtanh": lambda x: F.hardtanh(x, -2.0, 2.0),
    "hardtanh_": lambda x: F.hardtanh_(x, -2.0, 2.0),
    "clamp": lambda x: torch.clamp(x, -2, 2),
    "clamp keywords": lambda x: x.clamp(max=2, min=-2),
    "clamp_": lambda x: x.clamp_(-2, 2),
    "clip": lambda x: torch.clip(x, -2, 2),
    "two sides": lambda x: x.clamp(min=-2).clamp(max=2),
    "two sides, upper first": lambda x: x.clamp(max=2).clamp(min=-2),
    "clamp_min_": lambda x: x.clamp_min_(-2).clamp_max_(2),
    "minimum maximum": lambda x: torch.minimum(torch.maximum(x, constant(-2.0)), constant(2.0)),
    "maximum on the left": lambda x: torch.maximum(constant(-2.0), torch.minimum(constant(2.0), x)),
    "min max": lambda x: torch.min(torch.max(x, torch.full((), -2.0)), torch.full_like(x, 2.0)),
    "clamp tensors": lambda x: torch.clamp(x, constant(-2.0), constant(2.0)),
}

GELUS: dict[str, Tail] = {
    "GELU": nn.GELU(),
    "F.gelu": F.gelu,
    "x*0.5*(1.0+erf(x/sqrt(2)))": lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "0.5*x*(1+erf(x*0.707))": lambda x: 0.5 * x * (1 + torch.erf(x * 0.7071067811865476)),
    "ndtr": lambda x: x * torch.special.ndtr(x),
    "erfc": lambda x: 0.5 * x * torch.erfc(-x / math.sqrt(2)),
    "shared argument": lambda x: (lambda y: y * (1 + torch.erf(y)) / math.sqrt(2))(x / 2**0.5),
    "sum": lambda x: 0.5 * x + x * torch.erf(x / math.sqrt(2)) * 0.5,
    "tensor sqrt 2": lambda x: x * 0.5 * (1 + torch.erf(x / torch.tensor(math.sqrt(2)))),
}

TANHS: dict[str, Tail] = {
    "GELU tanh": nn.GELU(approximate="tanh"),
    "GPT-2": lambda x: (
        0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))
    ),
    "BERT gelu_new": lambda x: (
        x * 0.5 * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    ),
    "BERT gelu_fast": lambda x: (
        0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))
    ),
    "Megatron": lambda x: (
        x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))
    ),
    "sigmoid": lambda x: (
        x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    ),
}  # fmt: skip


def compose(*tails: Tail) -> Tail:
    def tail(x: torch.Tensor) -> torch.Tensor:
        for step in tails:
            x = step(x)
        return x

    return tail


DEFAULT = (SCALES["x*c"], CLAMPS["Hardtanh"], GELUS["GELU"])
CASES = [pytest.param((s, *DEFAULT[1:]), id=f"scale {n}") for n, s in SCALES.items()]
CASES += [pytest.param((DEFAULT[0], c, DEFAULT[2]), id=f"clamp {n}") for n, c in CLAMPS.items()]
CASES += [pytest.param((*DEFAULT[:2], g), id=f"gelu {n}") for n, g in GELUS.items()]


@pytest.mark.parametrize("tails", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_spelling_is_the_same_site(tails: tuple[Tail, ...], dtype: torch.dtype) -> None:
    x = torch.randn(6, 24, dtype=dtype)
    assert check(Model(compose(*tails), dtype), x, [SITE]) == []


@pytest.mark.parametrize("name", TANHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_spelling_of_tanh_gelu(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(6, 24, dtype=dtype)
    assert check(Model(TANHS[name], dtype), x, ["gelu_tanh"]) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("numerics", ["accurate", "bitwise"])
def test_every_dtype(dtype: torch.dtype, numerics: str) -> None:
    x = torch.randn(6, 24, dtype=dtype)
    assert check(Model(compose(*DEFAULT), dtype), x, [SITE], numerics) == []


ORDERS = {
    "mul(3.0) gelu": lambda x: F.gelu(x * 3),
    "clamp(-1.0, 1.0) gelu mul(2.0)": lambda x: F.gelu(F.hardtanh(x)) * 2,
    "gelu gelu": lambda x: F.gelu(F.gelu(x)),
    "gelu_tanh gelu": lambda x: F.gelu(F.gelu(x, approximate="tanh")),
    "clamp(0.0, inf)": F.relu,
    "clamp(0.0, 6.0)": F.relu6,
    "clamp(-inf, 1.5)": lambda x: x.clamp(max=1.5),
    "mul(-1.0)": lambda x: -x,
    "mul(0.3333333333333333)": lambda x: x / 3,
    "mul(6.0)": lambda x: (x * 2) * 3,
    "mul(2.0) mul(0.25)": lambda x: x * 2 * 0.25,
    "clamp(0.0, inf) mul(0.5) clamp(0.0, inf)": lambda x: F.relu(F.relu(x) / 2),
    "clamp(-1.0, 2.0) clamp(0.0, 3.0)": lambda x: x.clamp(-1, 2).clamp(0, 3),
    "clamp(2.0, 1.0)": lambda x: x.clamp(2, 1),
    "clamp(-inf, 1.0) clamp(2.0, inf)": lambda x: x.clamp(max=1).clamp(min=2),
    "mul(inf)": lambda x: x * math.inf,
    "div(0.0)": lambda x: x / 0,
    "div(1e-39)": lambda x: x / 1e-39,
    "clamp(-inf, inf) gelu": lambda x: F.gelu(F.hardtanh(x, -math.inf, math.inf)),
}


@pytest.mark.parametrize("epilogue", ORDERS)
def test_any_order_and_repetition(epilogue: str) -> None:
    model = Model(ORDERS[epilogue])
    with torch.no_grad():
        fused = fuse(model)
        x = torch.randn(6, 24)
        torch.testing.assert_close(fused(x), model(x), equal_nan=True)
    assert fused.epilogues == [epilogue] and fused.reasons == []


# --- contexts -----------------------------------------------------------------------------------


def seed_tail(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(torch.clamp(x * 0.5, -2, 2))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Model(lambda x: x * 0.5), nn.Sequential(nn.Hardtanh(-2, 2)))
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.inner(x))


class Functional(nn.Module):
    """The product spelled by ``gemm(x, weight, bias)``."""

    def __init__(self, gemm: Callable[..., torch.Tensor], kn: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(24, 40) if kn else torch.randn(40, 24))
        self.bias = nn.Parameter(torch.randn(40))
        self.gemm = gemm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return seed_tail(self.gemm(x, self.weight, self.bias))


def conv1d(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    size = (*x.shape[:-1], w.shape[1])
    return torch.addmm(b, x.view(-1, x.shape[-1]), w).view(size)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "helper": (lambda: Model(seed_tail), (6, 24)),
    "nested": (Nested, (6, 24)),
    "no bias": (lambda: Model(seed_tail, bias=False), (6, 24)),
    "3-D": (lambda: Model(seed_tail), (2, 3, 24)),
    "5-D": (lambda: Model(seed_tail), (2, 1, 3, 2, 24)),
    "F.linear": (lambda: Functional(F.linear), (6, 24)),
    "F.linear without bias": (lambda: Functional(lambda x, w, b: F.linear(x, w)), (6, 24)),
    "x @ w.t() + b": (lambda: Functional(lambda x, w, b: x @ w.t() + b), (6, 24)),
    "b + x @ w.T, 3-D": (lambda: Functional(lambda x, w, b: b + x @ w.T), (2, 3, 24)),
    "matmul": (lambda: Functional(lambda x, w, b: torch.matmul(x, w.mT)), (2, 3, 24)),
    "addmm": (lambda: Functional(lambda x, w, b: torch.addmm(b, x, w.t())), (6, 24)),
    "addmm, beta": (lambda: Functional(lambda x, w, b: torch.addmm(b, x, w.t(), beta=1)), (6, 24)),
    "Conv1D": (lambda: Functional(conv1d, kn=True), (2, 3, 24)),
    "x @ w": (lambda: Functional(lambda x, w, b: x @ w, kn=True), (6, 24)),
    "transposed result": (lambda: Model(lambda x: seed_tail(x.t()).t()), (6, 24)),
    "reshaped in between": (
        lambda: Model(lambda x: F.gelu((x * 0.5).view(-1, 4, 10).clamp(-2, 2)).transpose(1, 2)),
        (6, 24),
    ),
    "explicit float()": (lambda: Model(lambda x: seed_tail(x.double()).to(x.dtype)), (6, 24)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_every_anchor_and_nesting(name: str, dynamic: bool) -> None:
    make, shape = MODELS[name]
    assert check(make(), torch.randn(shape), [SITE], dynamic=dynamic) == []


@pytest.mark.parametrize(
    "kind", ["strided", "transposed", "expanded", "offset", "empty", "one row"]
)
def test_inputs_of_any_layout(kind: str) -> None:
    x = {
        "strided": torch.randn(6, 48)[:, ::2],
        "transposed": torch.randn(24, 6).t(),
        "expanded": torch.randn(1, 24).expand(6, 24),
        "offset": torch.randn(150)[5:149].view(6, 24),
        "empty": torch.randn(0, 24),
        "one row": torch.randn(1, 24),
    }[kind]
    model = Model(seed_tail)
    with torch.no_grad():
        fused = fuse(model)
        torch.testing.assert_close(fused(x), model(x))
    assert fused.epilogues == [SITE]


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_every_grad_mode(grad_mode: Callable) -> None:
    model, x = Model(seed_tail), torch.randn(6, 24)
    fused = fuse(model)
    with grad_mode():
        torch.testing.assert_close(fused(x), model(x))
    assert fused.epilogues == [SITE]


def test_grad_mode_inside_the_model() -> None:
    model = Model(torch.no_grad()(seed_tail))
    fused = fuse(model)
    x = torch.randn(6, 24)
    torch.testing.assert_close(fused(x), model(x))
    assert fused.epilogues == [SITE]


@pytest.mark.parametrize("inside", [False, True])
def test_autocast(inside: bool) -> None:
    plain, x = Model(seed_tail), torch.randn(6, 24)
    model = torch.autocast("cpu", torch.bfloat16)(plain.forward) if inside else plain
    fused = fuse(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not inside):
        found, eager = fused(x), model(x)
    assert fused.epilogues == [SITE] and found.dtype == torch.bfloat16
    torch.testing.assert_close(found, eager, atol=2e-2, rtol=2e-2)


def test_tied_weights_and_a_linear_called_twice() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(24, 24), nn.Linear(24, 24)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return seed_tail(self.b(F.relu(self.a(F.gelu(self.a(x))))))

    assert check(Tied(), torch.randn(6, 24), ["gelu", "clamp(0.0, inf)", SITE]) == []


def test_module_and_source_are_the_users() -> None:
    with torch.no_grad():
        fused = fuse(Nested())
        fused(torch.randn(6, 24))
    (site,) = fused.report.sites
    assert site.module == "inner.0.linear"
    line = Model.forward.__code__.co_firstlineno + 1
    code = "return self.tail(self.linear(x))"
    assert site.source == f"test_match_spellings.py:{line}, in forward: {code}"
    assert (site.m, site.n, site.k, site.dtype) == ("6", "40", "24", "float32")
