"""The seed's sequence in every context: anchors, nesting, layouts, grad modes, autocast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import SITE, Model, check, fuse
from torch import nn


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


class Narrow(Model):
    """Computes in the dtype of its weight, whatever it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(self.linear.weight.dtype))


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
    "x @ w.t() + row": (lambda: Functional(lambda x, w, b: x @ w.t() + b[None, :]), (6, 24)),
    "bias as a row, 3-D": (
        lambda: Functional(lambda x, w, b: F.linear(x, w) + b.view(1, 1, -1)), (2, 3, 24)
    ),
    "addmm of a row": (
        lambda: Functional(lambda x, w, b: torch.addmm(b[None, :], x, w.t())), (6, 24)
    ),
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
    "explicit float()": (
        lambda: Narrow(lambda x: seed_tail(x.float()).to(x.dtype), torch.bfloat16),
        (6, 24),
    ),
}  # fmt: skip


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


def test_a_weighted_bias_is_a_column() -> None:
    x, w, b = torch.randn(6, 24), torch.randn(24, 40), torch.randn(40)
    with torch.no_grad():
        fused = fuse(lambda x: F.relu(torch.add(x @ w, b, alpha=2)))
        torch.testing.assert_close(fused(x), F.relu(x @ w + 2 * b))
    assert fused.epilogues == ["col0 mul(2.0) add(z) clamp(0.0, inf)"]


@pytest.mark.parametrize(
    ("product", "bias"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
)
def test_a_bias_of_another_dtype_is_a_miss(product: torch.dtype, bias: torch.dtype) -> None:
    x, w, b = torch.randn(6, 24).to(product), torch.randn(24, 40).to(product), torch.randn(40)
    b = b.to(bias)
    with torch.no_grad():
        fused = fuse(lambda x: F.relu(x @ w + b))
        torch.testing.assert_close(fused(x), F.relu(x @ w + b))
    assert fused.before == fused.after
    assert fused.reasons == ["input, weight and bias differ in dtype or device"]


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
    assert site.source == f"graphs.py:{line}, in forward: {code}"
    assert (site.m, site.n, site.k, site.dtype) == ("6", "40", "24", "float32")


def test_torchs_own_lines_are_not_the_users() -> None:
    inner = nn.Sequential(nn.Linear(24, 40), nn.GELU())

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.vmap(inner)(x)

    x = torch.randn(6, 24)
    with torch.no_grad():
        fused = fuse(model)
        torch.testing.assert_close(fused(x), inner(x))
    (site,) = fused.report.sites
    line = model.__code__.co_firstlineno + 1
    code = "return torch.vmap(inner)(x)"
    assert site.source == f"test_match_contexts.py:{line}, in model: {code}"
