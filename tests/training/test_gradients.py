"""Gradients of compiled models against eager's, in float64, where both are exact to 1e-12."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import QUICK, Mlp, block, compiled, fused
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

pytestmark = pytest.mark.usefixtures("one_thread")


class _LearnableScales(nn.Module):
    """A 0-d and a one-element parameter, both learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 8)
        self.scale, self.gain = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor([1.3]))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(F.hardtanh(self.first(x) * self.scale))
        return F.gelu(self.second(x) * self.gain)


class _Twice(nn.Module):
    """One Linear at two places, with a different epilogue at each."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(F.gelu(self.linear(x)))).sin()


class _Intermediates(nn.Module):
    """The pre-activation and a value inside the epilogue are outputs, too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.linear(x)
        clamped = F.hardtanh(z * 0.5)
        return F.gelu(clamped), z, clamped


def _frozen(model: nn.Module, *kept: str) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], bool, int]] = {
    # name -> (model, whether the input wants a gradient, sites: of the forward, and an activation's
    # derivative behind the product that is the gradient of its result)
    "learnable scales": (_LearnableScales, False, 3),
    "input wants a gradient": (lambda: Mlp(8, 12), True, 2),
    "everything frozen but the input": (lambda: _frozen(Mlp(8, 12)), True, 2),
    "only the scale learns": (lambda: _frozen(_LearnableScales(), "scale", "gain"), False, 3),
    "only the last Linear learns": (lambda: _frozen(Mlp(8, 12), "down.weight"), False, 1),
    "one Linear used twice": (_Twice, True, 3),
    "intermediates returned": (_Intermediates, True, 1),
}
# Of these the code that Inductor generates is run, too.
_GENERATED = ("learnable scales", "intermediates returned")


def _gradients(run: Callable[[Tensor], Any], model: nn.Module, x: Tensor) -> list[Tensor | None]:
    model.zero_grad()
    x = x.detach().requires_grad_(x.requires_grad)
    outs = run(x)
    for i, out in enumerate(outs if isinstance(outs, tuple) else (outs,)):
        (out * (i + 1)).square().sum().backward(retain_graph=True)
    return [x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_eagers(case: str) -> None:
    make, wants, sites = CASES[case]
    model = make().double()
    x = (2 * torch.randn(10, 8, dtype=torch.float64)).requires_grad_(wants)
    expected = _gradients(model, model, x)
    options = {} if case in _GENERATED else QUICK
    found = _gradients(compiled(model, options=options), model, x)
    assert fused() == sites
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            assert theirs.abs().max() > 0
            assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gradient_accumulation() -> None:
    model = Mlp(8, 12).double()
    fast = compiled(model, options=QUICK)
    x = torch.randn(12, 8, dtype=torch.float64)
    model(x).square().sum().backward()
    whole = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    for part in x.split(3):
        fast(part).square().sum().backward()
    assert fused() == 2  # forward and backward of four micro-batches, one compile
    for ours, theirs in zip(model.parameters(), whole, strict=True):
        assert_close(ours.grad, theirs, rtol=1e-12, atol=1e-12)


def test_func_grad_and_vmap_of_a_compiled_model_run_its_original() -> None:
    model = block(8, 12).double()
    fast = compiled(model, options=QUICK)
    x = torch.randn(5, 8, dtype=torch.float64)

    def total(run: Any) -> Callable[[Tensor], Tensor]:
        return lambda v: run(v).square().sum()

    assert_close(torch.func.grad(total(fast))(x), torch.func.grad(total(model))(x))
    assert_close(torch.vmap(fast)(x), model(x))
    assert fused() == 0


def test_a_compiled_func_grad_is_fused() -> None:
    model = block(8, 12).double()
    gradient = torch.func.grad(lambda v: model(v).square().sum())
    x = torch.randn(5, 8, dtype=torch.float64)
    assert_close(compiled(gradient, options=QUICK)(x), gradient(x), rtol=1e-12, atol=1e-12)
    # The activation and its derivative behind the Linear, what follows the gradient of its input,
    # and the sum of two gradients of its weight.
    assert fused() == 3


def test_compiled_per_sample_gradients_are_right() -> None:
    model = block(8, 12).double()
    gradient = torch.vmap(torch.func.grad(lambda v: model(v).square().sum()))
    x = torch.randn(5, 8, dtype=torch.float64)
    assert_close(compiled(gradient, options=QUICK)(x), gradient(x), rtol=1e-12, atol=1e-12)


def test_vmap_and_grad_through_the_op_itself() -> None:
    import fusepass.op.linear  # noqa: F401

    x, weight = (torch.randn(*s, dtype=torch.float64) for s in ((5, 8), (12, 8)))
    bias = torch.randn(12, dtype=torch.float64)

    def op(v: Tensor) -> Tensor:
        return torch.ops.fusepass.linear(v, weight, bias, "mul(0.5) gelu", [])

    def plain(v: Tensor) -> Tensor:
        return F.gelu(F.linear(v, weight, bias) * 0.5)

    assert_close(torch.vmap(op)(x), plain(x))
    per_sample = torch.vmap(torch.func.grad(lambda v: op(v).sum()))(x)
    assert_close(per_sample, torch.vmap(torch.func.grad(lambda v: plain(v).sum()))(x))
    assert_close(torch.func.jacrev(op)(x[0]), torch.func.jacrev(plain)(x[0]))
    assert_close(torch.func.hessian(op)(x[0]), torch.func.hessian(plain)(x[0]))


def test_double_backward_says_that_a_compiled_graph_has_none() -> None:
    fast = compiled(block(8, 12).double(), options=QUICK)
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(fast(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(first.sum(), x)
