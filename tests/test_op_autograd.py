"""Gradients of the op used directly: eager's, no further from float64, and differentiable again."""

from __future__ import annotations

import pytest
import torch
from epilogues import GELUS, eager, error, random_epilogue, random_operands
from torch import Tensor
from torch.autograd import forward_ad

import fusepass.op.linear
from fusepass import Epilogue

F = torch.nn.functional
linear = torch.ops.fusepass.linear
linear_with_preact = torch.ops.fusepass.linear_with_preact
TEXT = "mul($0) clamp(-2.0, $1) gelu"


def leaves(dtype: torch.dtype, requires_grad: bool = True) -> list[Tensor]:
    shapes = ((3, 4, 6), (5, 6), (5,), (), (1,))
    tensors = [torch.randn(s, dtype=torch.float64).to(dtype) for s in shapes]
    tensors[-1].fill_(1.5)
    return [t.requires_grad_(requires_grad) for t in tensors]


def by_eager(x: Tensor, w: Tensor, b: Tensor, *operands: Tensor) -> Tensor:
    return eager(F.linear(x, w, b), Epilogue.parse(TEXT), [v.reshape(()) for v in operands])


@pytest.mark.parametrize("numerics", fusepass.op.arguments.NUMERICS)
@pytest.mark.parametrize("dtype", fusepass.op.arguments.DTYPES)
def test_gradients_are_eagers(dtype: torch.dtype, numerics: str) -> None:
    found: list[list[Tensor]] = []  # ours, eager's and the exact ones, of every draw and tensor
    for _ in range(8):  # in one alone the error of a scalar's gradient is a matter of luck
        tensors = leaves(dtype)
        x, w, b, *operands = tensors
        wide = [t.detach().double().requires_grad_() for t in tensors]
        clamped = F.linear(*wide[:3]) * wide[3]
        # At a bound the gradient jumps: to either side is as right as the other.
        smooth = (clamped + 2.0).abs().minimum((clamped - 1.5).abs()) > 0.1
        direction = torch.randn(3, 4, 5).to(dtype) * smooth
        got = torch.autograd.grad(
            linear(x, w, b, TEXT, operands, numerics=numerics), tensors, direction
        )
        expected = torch.autograd.grad(by_eager(*tensors), tensors, direction)
        exact = torch.autograd.grad(by_eager(*wide), wide, direction.double())
        assert [(g.dtype, g.shape) for g in got] == [(dtype, t.shape) for t in tensors]
        found += zip(got, expected, exact, strict=True)
    for i in range(5):
        got, expected, exact = (torch.stack(g) for g in zip(*found[i::5], strict=True))
        slack = torch.finfo(dtype).eps  # the order of sums differs
        assert error(got, exact) <= 1.5 * error(expected, exact) + slack


@pytest.mark.parametrize("gelu", GELUS)
@pytest.mark.parametrize("seed", range(6))
def test_gradcheck(gelu: str, seed: int) -> None:
    epilogue = random_epilogue(seed, gelu, operands=True)
    operands = [v.requires_grad_() for v in random_operands(epilogue, seed, dtype=torch.float64)]
    x, w, b, *_ = leaves(torch.float64)

    def both(x: Tensor, w: Tensor, b: Tensor, *operands: Tensor) -> tuple[Tensor, Tensor]:
        return linear_with_preact(x, w, b, str(epilogue), operands)

    assert torch.autograd.gradcheck(both, (x, w, b, *operands), fast_mode=True)
    assert torch.autograd.gradgradcheck(both, (x, w, b, *operands), fast_mode=True)


@pytest.mark.parametrize("wanted", range(5))
def test_each_gradient_alone(wanted: int) -> None:
    tensors = leaves(torch.float64, requires_grad=False)
    tensors[wanted].requires_grad_()
    x, w, b, *operands = tensors
    (got,) = torch.autograd.grad(linear(x, w, b, TEXT, operands).sum(), tensors[wanted])
    (expected,) = torch.autograd.grad(by_eager(*tensors).sum(), tensors[wanted])
    torch.testing.assert_close(got, expected)


def test_pre_activation_alone() -> None:
    x, w, b, *operands = leaves(torch.float64)
    _, z = linear_with_preact(x, w, b, TEXT, operands)
    got = torch.autograd.grad((z * z).sum(), (x, w, b))
    expected = torch.autograd.grad((F.linear(x, w, b) ** 2).sum(), (x, w, b))
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e)


def test_without_gradients_nothing_is_recorded() -> None:
    x, w, b, *operands = leaves(torch.float32)
    with torch.no_grad():
        assert linear(x, w, b, TEXT, operands).grad_fn is None
    with torch.inference_mode():
        assert linear(x, w, b, TEXT, operands).is_inference()
    assert not linear(x.detach(), w.detach(), None, "gelu", []).requires_grad


def test_hessian_and_functional_transforms() -> None:
    x, w, b, *operands = leaves(torch.float64, requires_grad=False)

    def ours(w: Tensor) -> Tensor:
        return linear(x, w, b, TEXT, operands).square().sum()

    def theirs(w: Tensor) -> Tensor:
        return by_eager(x, w, b, *operands).square().sum()

    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(ours)(w), transform(theirs)(w))
    torch.testing.assert_close(torch.func.jvp(ours, (w,), (w,)), torch.func.jvp(theirs, (w,), (w,)))
    torch.testing.assert_close(
        torch.autograd.functional.hessian(ours, w), torch.autograd.functional.hessian(theirs, w)
    )


def test_per_sample_gradients() -> None:
    x, w, b, *operands = leaves(torch.float64, requires_grad=False)

    def loss(w: Tensor, x: Tensor) -> Tensor:
        return linear(x, w, b, TEXT, operands).sum()

    got = torch.vmap(torch.func.grad(loss), (None, 0))(w, x)
    each = torch.stack([torch.func.grad(loss)(w, row) for row in x])
    torch.testing.assert_close(got, each)


def test_compiled_training_step() -> None:
    tensors = leaves(torch.float32)
    model = torch.compile(lambda *t: linear(*t[:3], TEXT, list(t[3:])).square().sum())
    got = torch.autograd.grad(model(*tensors), tensors)
    expected = torch.autograd.grad(by_eager(*tensors).square().sum(), tensors)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("which", range(5), ids=("x", "weight", "bias", "scale", "bound"))
def test_forward_mode_does_not_depend_on_grad_mode(which: int, device: str) -> None:
    tensors = [t.to(device) for t in leaves(torch.float64, requires_grad=False)]
    tangent = torch.randn_like(tensors[which])
    with torch.no_grad(), forward_ad.dual_level():
        tensors[which] = forward_ad.make_dual(tensors[which], tangent)
        x, w, b, *operands = tensors
        got = forward_ad.unpack_dual(linear(x, w, b, TEXT, operands)).tangent
        expected = forward_ad.unpack_dual(by_eager(*tensors)).tangent
    torch.testing.assert_close(got, expected)
