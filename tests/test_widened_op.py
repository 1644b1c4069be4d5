"""``fusepass::bmm_widened`` by itself: numbers on the CPU, errors, gradients, what torch asks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import fusepass.op.linear  # noqa: F401  (defines torch.ops.fusepass)

op = torch.ops.fusepass.bmm_widened


def batches(*leading: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    return torch.randn(*leading, 7, 16).to(dtype), torch.randn(*leading, 5, 16).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_it_is_eagers_product_of_the_widened(leading: tuple[int, ...], dtype: torch.dtype) -> None:
    x, w = batches(*leading, dtype=dtype)
    for scale in (1.0, 0.25, -0.3):
        out = op(x, w, scale)
        exact = x.double() @ w.double().mT * scale
        size = x.double().abs() @ w.double().abs().mT * abs(scale)
        assert out.dtype == torch.float32 and out.is_contiguous()
        assert ((out.double() - exact).abs() <= 16 * 2.0**-24 * size).all()


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad: bool) -> None:
    x, w = (t.requires_grad_(requires_grad) for t in batches(2, 3))
    torch.library.opcheck(op.default, (x, w, 0.5))
    torch.library.opcheck(op.default, (x.mT.contiguous().mT, w[:, :, ::2], 1.0))


def test_gradients_are_eagers() -> None:
    x, w = (t.requires_grad_() for t in batches(2))
    got = torch.autograd.grad(op(x, w, 0.25).square().sum(), (x, w))
    product = (x.float() * 0.5) @ (w.float() * 0.5).mT
    wanted = torch.autograd.grad(product.square().sum(), (x, w))
    torch.testing.assert_close(got, wanted)


def test_vmap_adds_a_dimension() -> None:
    x, w = batches(2, 3)
    whole = op(x, w, 0.5)
    assert torch.equal(torch.vmap(lambda a, b: op(a, b, 0.5))(x, w), whole)
    one = torch.vmap(lambda a: op(a, w[0], 0.5), in_dims=1)(torch.stack([x[0], x[1]], 1))
    assert torch.equal(one, torch.stack([op(x[0], w[0], 0.5), op(x[1], w[0], 0.5)]))


def test_flops_are_two_a_product() -> None:
    with FlopCounterMode(display=False) as counter:
        op(*batches(2, 3), 1.0)
    assert counter.get_total_flops() == 2 * 6 * 7 * 5 * 16


def test_errors_name_the_argument() -> None:
    x, w = batches(2)
    wrong = {
        "x must be float16 or bfloat16, got torch.float32": (x.float(), w, 1.0),
        "x must be [..., M, K], got shape (16,)": (x[0, 0], w, 1.0),
        "w is torch.float16 and x is torch.bfloat16; cast w": (x, w.half(), 1.0),
        "w must be [2, N, 16], got (2, 5, 8)": (x, w[..., :8], 1.0),
        "w must be [2, N, 16], got (5, 16)": (x, w[0], 1.0),
        "scale must be finite, got inf": (x, w, math.inf),
    }
    for message, arguments in wrong.items():
        with pytest.raises(ValueError, match=r"^fusepass::bmm_widened: ") as error:
            op(*arguments)
        assert message in str(error.value)
    with FakeTensorMode():
        other = torch.empty(2, 5, 16, dtype=torch.bfloat16, device="cuda")
        fake = torch.empty(2, 7, 16, dtype=torch.bfloat16)
        with pytest.raises(ValueError, match=r"w is on cuda:0 and x on cpu; move w with .to"):
            op(fake, other, 1.0)
